"""A file that comes in pieces, is checked, and only then appears under its name; it makes no call."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from halfreel_client.errors import DataLoss
from halfreel_client.film import Artifact

_READ_BYTES = 1024 * 1024


def part_path(path: Path, artifact: Artifact) -> Path:
    """Where the pieces of a video are kept until it is whole: beside `path`, so that it can be renamed."""
    return path.with_name(f".{path.name}.{artifact.sha256[:16]}.part")


class Download:
    """One MP4 on its way to `path`. What has come is kept in a file beside it, named by its hash, for the next try.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, path: Path, artifact: Artifact) -> None:
        self._path = path
        self._artifact = artifact
        self._hash = hashlib.sha256()
        self.part_path = part_path(path, artifact)
        self._file = self.part_path.open("a+b")
        self._file.seek(0)
        while piece := self._file.read(_READ_BYTES):
            self._hash.update(piece)
        self.offset_bytes = self._file.tell()
        if self.offset_bytes > artifact.size_bytes:
            self._begin_again()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Takes the next piece.

        Raises:
            DataLoss: the piece does not begin where the last one ended.
        """
        if offset_bytes != self.offset_bytes:
            raise DataLoss(
                f"a piece of the video begins at byte {offset_bytes}, not at {self.offset_bytes}; try again",
                reason="VIDEO_DAMAGED",
            )
        self._file.write(data)
        self._hash.update(data)
        self.offset_bytes += len(data)

    def finish(self) -> None:
        """Checks the whole and gives it its name, replacing what was there.

        Raises:
            DataLoss: length or SHA-256 are not the artifact's; what had come is thrown away.
        """
        if self.offset_bytes != self._artifact.size_bytes or self._hash.hexdigest() != self._artifact.sha256:
            got_bytes = self.offset_bytes
            self._file.close()
            self.part_path.unlink()
            raise DataLoss(
                f"the video that came has {got_bytes} bytes or a SHA-256 other than the film's own "
                f"({self._artifact.size_bytes} bytes, {self._artifact.sha256}); try again",
                reason="VIDEO_DAMAGED",
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.part_path.replace(self._path)

    def _begin_again(self) -> None:
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.offset_bytes = 0
