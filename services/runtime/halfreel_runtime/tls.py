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

    A new connection gets what the files hold when it is made. Files that can't be used are logged, once, and what was
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
        return self._loaded.expires

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For one gRPC server, which asks at each new connection whether there is a new certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self._given.configuration,
            self._changed_configuration,  # type: ignore[arg-type]  # None is for no change, its documentation says
            require_client_authentication=self._client_ca_file is not None,
        )

    def https_context(self) -> ssl.SSLContext:
        """For the next HTTPS connection. Asks for no client certificate: probes have none, scrapers have a token."""
        with self._lock:
            self._reload()
            return self._loaded.context

    def _changed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC is to use from now on; None for what it has, which spares it to read the key at each connection."""
        with self._lock:
            self._reload()
            if self._given is self._loaded:
                return None
            self._given = self._loaded
            return self._given.configuration

    def _reload(self) -> None:
        seen = self._signatures()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._loaded = self._load()
        except FileRefusedError as error:
            _logger.error("tls_not_reloaded", extra={"reason": str(error)})
        else:
            _logger.info("tls_reloaded", extra={"expires": self._loaded.expires.isoformat()})

    def _signatures(self) -> tuple[Signature, ...]:
        paths = (self._certificate_file, self._key_file, self._client_ca_file)
        return tuple(signature(path) for path in paths if path is not None)

    def _load(self) -> _Loaded:
        certificate = read_public(self._certificate_file, "tls_certificate_file")
        key = read_secret(self._key_file, "tls_key_file")
        client_ca = None
        if self._client_ca_file is not None:
            client_ca = read_public(self._client_ca_file, "tls_client_ca_file")
            _check_ca(client_ca, self._client_ca_file)
        context = self._server_context()
        expires = self._checked_expiry(context, certificate)
        if self._signatures() != self._seen:
            # Not remembered as seen: the next connection reads them again.
            raise FileRefusedError(f"tls_certificate_file {self._certificate_file} or its key is being written")
        return _Loaded(certificate, key, client_ca, context, expires)

    def _server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # An encrypted key would otherwise ask the terminal for its password, and wait.
            context.load_cert_chain(self._certificate_file, self._key_file, password=_no_password)
        except _EncryptedKeyError:
            raise FileRefusedError(f"tls_key_file {self._key_file} is encrypted; a server needs it plain") from None
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = f"tls_key_file {self._key_file} is not the key of tls_certificate_file"
                raise FileRefusedError(f"{problem} {self._certificate_file}") from None
            problem = f"tls_certificate_file {self._certificate_file} or tls_key_file {self._key_file} is not PEM"
            raise FileRefusedError(f"{problem}, or does not hold what it must") from None
        except OSError as error:
            problem = f"tls_certificate_file {self._certificate_file} or its key can't be read"
            raise FileRefusedError(f"{problem}: {error.strerror}") from None
        return context

    def _checked_expiry(self, context: ssl.SSLContext, certificate: bytes) -> datetime:
        """When the certificate ends, found by a handshake with ourselves, which tells all that a client would mind."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False  # which names it is called by is the clients' matter
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is what is trusted here
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            client.load_verify_locations(cadata=certificate.decode("ascii"))
            ends = (
                client.wrap_bio(to_client, to_server),
                context.wrap_bio(to_server, to_client, server_side=True),
            )
            for end in (*ends, *ends):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        except ssl.SSLCertVerificationError as error:
            told = f"tls_certificate_file {self._certificate_file} can't be used: {error.verify_message}"
            raise FileRefusedError(told) from None
        except (ssl.SSLError, UnicodeDecodeError) as error:
            reason = getattr(error, "reason", None) or "it is not PEM"
            raise FileRefusedError(f"tls_certificate_file {self._certificate_file} can't be used: {reason}") from None
        peer = ends[0].getpeercert()
        assert peer is not None
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(peer["notAfter"])), UTC)


class _EncryptedKeyError(Exception):
    """The key asks for a password."""


def _no_password() -> str:
    raise _EncryptedKeyError


def _check_ca(content: bytes, path: Path) -> None:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise FileRefusedError(f"tls_client_ca_file {path} holds no certificate in PEM") from None
    if not context.get_ca_certs():
        raise FileRefusedError(f"tls_client_ca_file {path} holds no certificate of a CA")
