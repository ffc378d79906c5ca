"""One large file on its way into the cache: it goes on where the last try broke off, and is checked as it comes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status

_PIECE_BYTES = 1024 * 1024
_TRY_COUNT = 5
_TIMEOUT_S = 30.0
_PARTIAL_CONTENT = 206

# Told of every piece that was hashed; negative when pieces are thrown away.
OnBytes = Callable[[int], None]


class DamagedFileError(Exception):
    """What came, or was in the cache, is not what the hub says it is; it was removed."""


class LargeFile:
    """A file known by its SHA-256, kept in a part file until it is whole.

    Args:
        part: the part file, opened for appending and reading.
        size_bytes: of the whole, as the hub tells it.
        on_bytes: told of progress.
    """

    def __init__(self, part: BinaryIO, size_bytes: int, on_bytes: OnBytes) -> None:
        self._part = part
        self._size_bytes = size_bytes
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()
        self._offset_bytes = 0
        part.seek(0)
        while piece := part.read(_PIECE_BYTES):
            self._count(piece)
        if self._offset_bytes > size_bytes:
            self._begin_again()

    @property
    def sha256(self) -> str:
        """SHA-256 of what is there, in lower-case hexadecimal."""
        return self._hash.hexdigest()

    def fetch(self, url: str, headers: dict[str, str]) -> None:
        """Fetches what is missing; a connection that breaks is made again while it still brings something.

        Raises:
            huggingface_hub.errors.HTTPError: the hub refused, or could not be reached for several tries.
            OSError: the disk is full.
        """
        failure_count = 0
        while self._offset_bytes < self._size_bytes:
            before = self._offset_bytes
            try:
                self._stream(url, headers)
            except HfHubHTTPError:
                raise  # the hub has answered, and will not answer otherwise
            except HTTPError:
                failure_count += 1
                if failure_count == _TRY_COUNT:
                    raise
            if self._offset_bytes > before:
                failure_count = 0
        self._part.flush()
        os.fsync(self._part.fileno())

    def _stream(self, url: str, headers: dict[str, str]) -> None:
        # The bytes as they are: a compressed answer would have other offsets.
        asked = {**headers, "Range": f"bytes={self._offset_bytes}-", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=asked, timeout=_TIMEOUT_S) as response:
            hf_raise_for_status(response)
            if response.status_code != _PARTIAL_CONTENT:
                self._begin_again()  # the range was ignored: this is the file from its beginning
            for piece in response.iter_bytes(_PIECE_BYTES):
                self._part.write(piece)
                self._count(piece)
                if self._offset_bytes > self._size_bytes:
                    return  # too long already; its hash will not be right

    def _count(self, piece: bytes) -> None:
        self._hash.update(piece)
        self._offset_bytes += len(piece)
        self._on_bytes(len(piece))

    def _begin_again(self) -> None:
        self._on_bytes(-self._offset_bytes)
        self._part.truncate(0)
        self._hash = hashlib.sha256()
        self._offset_bytes = 0


def check(path: Path, size_bytes: int, sha256: str, git_id: str, on_bytes: OnBytes) -> None:
    """Checks a file that is in the cache, by its SHA-256 or, when there is none, by git's hash.

    Raises:
        DamagedFileError: its bytes are not those of the hub.
    """
    digest = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            on_bytes(len(piece))
    if digest.hexdigest() != (sha256 or git_id):
        raise DamagedFileError
