"""How a client proves who it is, and whom it believes: certificates of TLS, and the token of its calls.

It does not know services.
"""

from __future__ import annotations

import ipaddress
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

_LOCALHOST = re.compile(r"localhost(:\d+)?")


class CredentialsError(ValueError):
    """One line on why a channel can't be opened as it was asked."""


@dataclass(frozen=True)
class Credentials:
    """What a client uses beyond the address. Without any of it, the channel is neither secret nor checked.

    Attributes:
        ca_file: PEM of the CAs that may have signed the server's certificate; TLS is used when it is given.
        token_file: holds the token, which is sent with every call. It is read again when it changes. Without TLS it is
            sent to this machine alone.
        certificate_file: PEM of the client's own certificate, for servers that ask for one.
        key_file: PEM of its key.
    """

    ca_file: Path | None = None
    token_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """As HALFREEL_CA_FILE, HALFREEL_TOKEN_FILE, HALFREEL_CERTIFICATE_FILE and HALFREEL_KEY_FILE say."""
        names = ("ca_file", "token_file", "certificate_file", "key_file")
        values = {name: environ.get(f"HALFREEL_{name.upper()}") for name in names}
        return cls(**{name: Path(value).expanduser() for name, value in values.items() if value})

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel of TLS; None for one without.

        Raises:
            CredentialsError: what was given does not go together, or can't be read.
        """
        if (self.certificate_file is None) != (self.key_file is None):
            raise CredentialsError("a client's certificate and its key go together: certificate_file and key_file")
        if self.ca_file is None:
            if self.certificate_file is not None:
                raise CredentialsError("a client's certificate is shown over TLS alone: name the server's ca_file")
            return None
        return grpc.ssl_channel_credentials(
            _read(self.ca_file, "ca_file"),
            _read(self.key_file, "key_file") if self.key_file else None,
            _read(self.certificate_file, "certificate_file") if self.certificate_file else None,
        )

    def token(self, address: str) -> Token | None:
        """The token for calls to `address`; None where there is none.

        Raises:
            CredentialsError: it would be sent over the network for all to read, or its file can't be used.
        """
        if self.token_file is None:
            return None
        if self.ca_file is None and not _is_loopback(address):
            raise CredentialsError(f"a token is not sent to {address} without TLS: name the server's ca_file")
        return Token(self.token_file)


class Token:
    """The token of a file. May be asked by any thread.

    Raises:
        CredentialsError: the file can't be read, others may read it, or it holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen, self._authorization = self._read()

    def authorization(self) -> tuple[tuple[str, str]]:
        """The metadata of a call; read again if the file was replaced by another that can be read."""
        try:
            if self._path.stat().st_mtime_ns != self._seen:
                self._seen, self._authorization = self._read()
        except (OSError, CredentialsError):
            pass  # the server tells whether the last one is still good
        return (("authorization", self._authorization),)

    def _read(self) -> tuple[int, str]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise CredentialsError(f"token_file {self._path} can't be read: {error.strerror}") from None
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise CredentialsError(f"token_file {self._path} can be read by others; chmod 600 makes it yours alone")
        text = _read(self._path, "token_file").decode("ascii", errors="replace").strip()
        if not re.fullmatch(r"[\x21-\x7e]{1,1000}", text):
            raise CredentialsError(f"token_file {self._path} must hold a token and nothing else")
        return status.st_mtime_ns, f"Bearer {text}"


def _is_loopback(address: str) -> bool:
    if _LOCALHOST.fullmatch(address):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{name} {path} can't be read: {error.strerror}") from None
