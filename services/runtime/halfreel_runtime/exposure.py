"""Whether a server may listen where it was told: beyond this machine only with TLS and tokens.

It does not know how to listen.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from halfreel_runtime.server_settings import ServerSettings
from halfreel_runtime.tls import ServerTls
from halfreel_runtime.tokens import TokenFile
from halfreel_runtime.watched_file import FileRefusedError


class ListenError(Exception):
    """One line on why the server can't listen, for a person who starts it."""


@dataclass(frozen=True)
class Protection:
    """What a server is protected with; None for what it is not."""

    tls: ServerTls | None
    tokens: TokenFile | None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def protection_for(settings: ServerSettings) -> Protection:
    """The certificate and the tokens of a server, read and checked.

    Raises:
        ListenError: a file can't be used, or what is missing must not be missing on this host.
    """
    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    if (certificate is None) != (key is None):
        missing = "tls_key_file" if key is None else "tls_certificate_file"
        raise ListenError(f"{missing} is missing; a certificate and its key go together")
    if settings.tls_client_ca_file is not None and certificate is None:
        raise ListenError("tls_client_ca_file is set without tls_certificate_file and tls_key_file")
    _check_host(settings)
    try:
        return Protection(
            ServerTls(certificate, key, settings.tls_client_ca_file) if certificate and key else None,
            TokenFile(settings.tokens_file) if settings.tokens_file else None,
        )
    except FileRefusedError as error:
        raise ListenError(str(error)) from None


def _check_host(settings: ServerSettings) -> None:
    if is_loopback(settings.host) or settings.allow_insecure_listen:
        return
    missing = [
        name
        for name, value in (
            ("tls_certificate_file and tls_key_file", settings.tls_certificate_file),
            ("tokens_file", settings.tokens_file),
        )
        if value is None
    ]
    if missing:
        raise ListenError(
            f"host is {settings.host}; only loopback (127.0.0.1, ::1) may be listened on without "
            f"{' and '.join(missing)}, unless allow_insecure_listen is true"
        )
