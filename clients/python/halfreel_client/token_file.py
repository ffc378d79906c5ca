"""The file of tokens that servers read: made, listed, and taken back here.

It holds hashes, never a token. It does not know servers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCOPES = ("generate", "read", "admin")
# What a server takes at most.
MAX_TOKEN_COUNT = 1000
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PREFIX = "hr_"


class TokenFileError(Exception):
    """One line on what is wrong with a file of tokens, or with what it was asked for."""


@dataclass(frozen=True)
class TokenEntry:
    """A token as the file has it.

    Attributes:
        id: tells it from others of the same name.
        name: whose it is; films belong to the name.
        sha256: of the token, in hex.
        scopes: what it may do: "generate", "read", "admin".
        expires: RFC 3339, when its time is over; None for never.
    """

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    expires: str | None

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and datetime.fromisoformat(self.expires) <= datetime.now(UTC)


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """The file's tokens.

    Raises:
        TokenFileError: it is no file of tokens.
        OSError: it can't be read.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["tokens"]
        tokens = tuple(TokenEntry(**{**entry, "scopes": tuple(entry["scopes"])}) for entry in entries)
        for token in tokens:
            _ = token.expired
    except (ValueError, KeyError, TypeError):
        raise TokenFileError(f"{path} is no file of tokens") from None
    return tokens


def add_token(path: Path, name: str, scopes: Sequence[str], expires: datetime | None) -> str:
    """Makes a token, keeps its hash in the file, and gives the token, which is kept nowhere.

    Args:
        path: made if it is not there, for its owner alone.
        name: whose the token is; one who has a token already gets another of the same name, to replace it in peace.
        scopes: of SCOPES, at least one.
        expires: when its time is over.

    Raises:
        TokenFileError: the file is none of tokens, is full, or what was asked for is wrong.
        OSError: it can't be written.
    """
    if not _NAME.fullmatch(name):
        raise TokenFileError(f"the name {name!r} must be 1 to 64 of A-Z a-z 0-9 _ . -")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise TokenFileError(f"the scopes {','.join(scopes)!r} must be one or more of {','.join(SCOPES)}")
    token = _PREFIX + secrets.token_urlsafe(32)
    entry = TokenEntry(
        id=secrets.token_hex(4),
        name=name,
        sha256=hashlib.sha256(token.encode("ascii")).hexdigest(),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        expires=None if expires is None else expires.astimezone(UTC).isoformat(timespec="seconds"),
    )
    with _locked(path):
        tokens = read_tokens(path) if path.exists() else ()
        if len(tokens) >= MAX_TOKEN_COUNT:
            raise TokenFileError(f"{path} has {len(tokens)} tokens, which is as many as may be; revoke some")
        _write(path, (*tokens, entry))
    return token


def revoke_tokens(path: Path, name_or_id: str) -> tuple[TokenEntry, ...]:
    """Takes the tokens of a name back, or the one with an id; gives what was taken, which may be nothing.

    Raises:
        TokenFileError: it is no file of tokens.
        OSError: it can't be read or written.
    """
    with _locked(path):
        tokens = read_tokens(path)
        revoked = tuple(token for token in tokens if name_or_id in (token.name, token.id))
        if revoked:
            _write(path, tuple(token for token in tokens if token not in revoked))
    return revoked


def write_secret(path: Path, text: str) -> None:
    """Writes a file that its owner alone may read; one that is there keeps its owner, group and group's right to read.

    A server that reads it meanwhile finds the old or the new.
    """
    descriptor, half_written = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # has the rights 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        with contextlib.suppress(FileNotFoundError, PermissionError):
            old = path.stat()
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o640)
    Path(half_written).replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One at a time changes the files of a folder; the lock is on the folder, so that none is left behind."""
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, tokens: Sequence[TokenEntry]) -> None:
    content: dict[str, Any] = {"tokens": [asdict(token) for token in tokens]}
    write_secret(path, json.dumps(content, indent=2) + "\n")
