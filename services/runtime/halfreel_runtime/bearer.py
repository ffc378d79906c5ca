"""The token that a server shows to other servers: read from a file, again when it changes, and put on each call.

It does not know what is called.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from halfreel_runtime.watched_file import FileRefusedError, read_secret, signature

_logger = logging.getLogger(__name__)

# How late a change of the file is noticed, at most.
LOOK_INTERVAL_S = 1.0


class BearerToken:
    """The token of a file. May be asked by any thread.

    Args:
        path: holds the token alone; nobody else may read it.
        setting: its name in the settings, for errors.

    Raises:
        FileRefusedError: it can't be read, or holds no token.
    """

    def __init__(self, path: Path, setting: str) -> None:
        self._path = path
        self._setting = setting
        self._lock = threading.Lock()
        self._seen = signature(path)
        self._token = self._read()
        self._looked = time.monotonic()

    @property
    def authorization(self) -> tuple[str, str]:
        """The metadata of a call. A file that can't be read any more is logged, once, and the last token stays."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= LOOK_INTERVAL_S:
                self._looked = now
                self._reload()
            return ("authorization", f"Bearer {self._token}")

    def _reload(self) -> None:
        seen = signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._token = self._read()
        except FileRefusedError as error:
            _logger.error("token_not_reloaded", extra={"reason": str(error)})

    def _read(self) -> str:
        token = read_secret(self._path, self._setting).decode("ascii", errors="replace").strip()
        if not token or not token.isprintable() or " " in token:
            raise FileRefusedError(f"{self._setting} {self._path} holds no token; it must hold one, and nothing else")
        return token


class BearerInterceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Puts the token on the calls of a channel for threads."""

    def __init__(self, token: BearerToken) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with the token."""
        return continuation(_signed(client_call_details, self._token), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with the token."""
        return continuation(_signed(client_call_details, self._token), request)


class AioBearerInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Puts the token on the calls of an asyncio channel that have one answer."""

    def __init__(self, token: BearerToken) -> None:
        self._token = token

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with the token."""
        return await continuation(_signed(client_call_details, self._token), request)


def _signed(details: Any, token: BearerToken) -> Any:
    """The details of a call, which are a named tuple in both kinds of channel, with the token among its metadata."""
    return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), token.authorization))
