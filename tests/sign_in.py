"""What tests sign in with: tokens and certificates, made by the same functions as a person's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

from halfreel_client.certificates import Files
from halfreel_client.token_file import add_token, write_secret

LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")


class Keyring:
    """A tokens_file, and the tokens whose hashes are in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "tokens.json"
        self.tokens: dict[str, str] = {}

    def add(self, name: str, *scopes: str, lasts: timedelta | None = timedelta(days=1)) -> str:
        ends = None if lasts is None else datetime.now(UTC) + lasts
        self.tokens[name] = add_token(self.path, name, scopes, ends)
        return self.tokens[name]

    def file(self, name: str) -> Path:
        """A token_file of one's own."""
        path = self.folder / f"{name}.token"
        write_secret(path, self.tokens[name] + "\n")
        return path


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def trusting(files: Files, *, with_client_certificate: bool = False) -> grpc.ChannelCredentials:
    own = (files.key("client").read_bytes(), files.certificate("client").read_bytes())
    return grpc.ssl_channel_credentials(
        files.certificate("ca").read_bytes(), *(own if with_client_certificate else (None, None))
    )
