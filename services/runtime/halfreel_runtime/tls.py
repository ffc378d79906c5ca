"""A server's certificate and key: checked, read again when they change, and given to gRPC and to HTTPS.

It does not know who listens with them.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from halfreel_runtime.watched_file import FileRefusedError, Signature, read_public, read_secret, signature

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    """What the files held, all of it checked."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    expires: datetime

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class ServerTls:
    """The certificate of one server. Methods may be called by any thread.

    New connections get what the files hold when they are made. Files that can't be used are logged once, and what was
    read before stays in use.

    Args:
        certificate_file: PEM, the server's certificate first, then those between it and its CA.
        key_file: PEM, not encrypted; nobody else may read it.
        client_ca_file: PEM; with it, gRPC clients must show a certificate that one of these CAs has signed.

    Raises:
        FileRefusedError: a file can't be read, the key is not the certificate's, or the certificate is not valid now.
    """

    def __init__(self, certificate_file: Path, key_file: Path, client_ca_file: Path | None = None) -> None:
        self._certificate_file = certificate_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._lock = threading.Lock()
        self._seen = self._signatures()
        self._loaded = self._load()
        self._given = self._loaded

    @property
    def expires(self) -> datetime:
        """When the certificate in use ends."""
        with self._lock:
            return self._loaded.expires

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For one gRPC server, which asks at each new connection whether there is a new certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self._given.configuration,
            self._changed_configuration,
            require_client_authentication=self._client_ca_file is not None,
        )

    def https_context(self) -> ssl.SSLContext:
        """For the next HTTPS connection. Asks for no client certificate: probes have none, scrapers have a token."""
        with self._lock:
            self._reload()
            return self._loaded.context

    def _changed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC is to use from now on; None for what it has."""
        with self._lock:
            self._reload()
            if self._given is self._loaded:
                return None
            self._given = self._loaded
            return self._loaded.configuration

    def _reload(self) -> None:
        try:
            seen = self._signatures()
            if seen == self._seen:
                return
            # Remembered before they are read: files that are still being written will differ again.
            self._seen = seen
            self._loaded = self._load()
        except FileRefusedError as error:
            if self._seen is not None:
                _logger.error("tls_not_reloaded", extra={"reason": str(error)})
            self._seen = seen if "seen" in locals() else None
        else:
            _logger.info("tls_reloaded", extra={"expires": self._loaded.expires.isoformat()})

    def _signatures(self) -> tuple[Signature, ...] | None:
        raise NotImplementedError

    def _load(self) -> _Loaded:
        raise NotImplementedError
