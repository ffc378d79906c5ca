"""The tokens that a server takes: a file of their hashes, read again when it changes.

It does not know methods: `scopes` says what each needs, `access` asks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from halfreel_runtime.errors import PermissionDenied, Unauthenticated
from halfreel_runtime.scopes import Scope
from halfreel_runtime.watched_file import FileRefusedError, read_secret, signature

_logger = logging.getLogger(__name__)

# Each is compared at each call: so many cost about 0.2 ms.
MAX_TOKEN_COUNT = 1000
# How late a change of the file is noticed, at most.
LOOK_INTERVAL_S = 1.0
# "hr_" and 256 random bits; `halfreel tokens add` makes them so.
_BEARER = re.compile(r"Bearer (hr_[A-Za-z0-9_-]{43})")


class _Entry(BaseModel):
    """A token in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    expires: AwareDatetime | None


class _File(BaseModel):
    """All of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Annotated[tuple[_Entry, ...], Field(max_length=MAX_TOKEN_COUNT)]


@dataclass(frozen=True)
class Token:
    """A token as it is known here, which is not enough to use it.

    Attributes:
        token_id: tells it from others of the same name.
        name: whose it is; what it makes belongs to this name.
        digest: SHA-256 of the token. A plain hash, without salt and not a slow one: a token is 256 random bits, which
            no table holds and no one guesses, unlike a password; and it is computed at every call.
        scopes: what it may do.
        expires: the end of its time; None for none.
    """

    token_id: str
    name: str
    digest: bytes
    scopes: frozenset[Scope]
    expires: datetime | None


class TokenFile:
    """The tokens of a file. May be asked by any thread.

    A file that can't be used any more is logged, once, and the tokens that were read before stay in use.

    Args:
        path: JSON; nobody else may read it.

    Raises:
        FileRefusedError: it can't be read, or is no file of tokens.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen = signature(path)
        self._tokens = _read(path)
        self._looked = time.monotonic()

    def authenticate(self, authorizations: Sequence[object]) -> Token:
        """The token of a call.

        Args:
            authorizations: the values of its authorization metadata or headers.

        Raises:
            Unauthenticated: TOKEN_MISSING, TOKEN_INVALID or TOKEN_EXPIRED.
        """
        if not authorizations:
            raise Unauthenticated(
                "This server needs a token: send authorization metadata with 'Bearer' and the token.",
                reason="TOKEN_MISSING",
            )
        value = authorizations[0]
        match = _BEARER.fullmatch(value) if len(authorizations) == 1 and isinstance(value, str) else None
        token = self._find(match[1]) if match is not None else None
        if token is None:
            raise Unauthenticated("The token is not one that this server takes.", reason="TOKEN_INVALID")
        if token.expires is not None and token.expires <= datetime.now(UTC):
            raise Unauthenticated("The token's time is over; ask for a new one.", reason="TOKEN_EXPIRED")
        return token

    def _find(self, text: str) -> Token | None:
        digest = hashlib.sha256(text.encode("ascii")).digest()
        found = None
        for token in self._current():
            # All are compared, and each in constant time: how long it takes tells nothing of any.
            if hmac.compare_digest(digest, token.digest):
                found = token
        return found

    def _current(self) -> tuple[Token, ...]:
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= LOOK_INTERVAL_S:
                self._looked = now
                self._reload()
            return self._tokens

    def _reload(self) -> None:
        seen = signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._tokens = _read(self._path)
        except FileRefusedError as error:
            _logger.error("tokens_not_reloaded", extra={"reason": str(error)})
        else:
            _logger.info("tokens_reloaded", extra={"token_count": len(self._tokens)})


def check_scope(token: Token, needed: Scope | None) -> None:
    """Whether a token may do what needs this scope; None is what nobody may.

    Raises:
        PermissionDenied: SCOPE_MISSING.
    """
    if needed is None:
        raise PermissionDenied("No token allows this method.", reason="SCOPE_MISSING")
    if needed not in token.scopes:
        raise PermissionDenied(
            f"The token lacks the scope {needed}.", reason="SCOPE_MISSING", metadata={"scope": needed.value}
        )


def _read(path: Path) -> tuple[Token, ...]:
    content = read_secret(path, "tokens_file")
    try:
        entries = _File.model_validate(json.loads(content)).tokens
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise FileRefusedError(f"tokens_file {path}: {place or 'the file'}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise FileRefusedError(f"tokens_file {path} is not JSON; `halfreel tokens` writes it") from None
    for what, values in (("id", [each.id for each in entries]), ("sha256", [each.sha256 for each in entries])):
        if len(set(values)) < len(values):
            raise FileRefusedError(f"tokens_file {path}: two tokens have the same {what}")
    return tuple(Token(each.id, each.name, bytes.fromhex(each.sha256), each.scopes, each.expires) for each in entries)
