"""Clips and films on disk: every file appears whole or not at all, under a name that no client chose.

    <data_dir>/clips/<sha256>.mp4     one file a clip, whichever films use it
    <data_dir>/clips/<sha256>.png     the last frame of that clip, where a film needs it
    <data_dir>/films/<film_id>.mp4    a published film

It does not know what is in the files, nor who refers to them.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from halfreel_gateway.failures import FileVanishedError, disk_full_failure
from halfreel_gateway.folder_lock import is_held

CLIPS, FILMS = "clips", "films"
_FILE_NAME = re.compile(r"[0-9a-f]{64}\.(mp4|png)|[0-9a-f]{32}\.mp4")
_TEMPORARY_SUFFIX = ".part"
_TEMPORARY_NAME = re.compile(r"\.(?P<owner>.+)-[0-9a-f]{16}\.part")
_READ_BYTES = 1 << 20
# A file that is not referred to is left alone for so long: another gateway may be about to refer to it.
_ORPHAN_AGE_S = 3600.0
# Kept free for the database, which must still be able to store that a film failed.
RESERVE_BYTES = 16 << 20


class Artifacts:
    """The folder of finished files.

    Args:
        data_dir: of the gateway; made if missing.
        owner: of this process's temporary files; it holds the folder's lock of that name.
    """

    def __init__(self, data_dir: Path, owner: str) -> None:
        self._root = data_dir
        self._owner = owner
        for folder in (CLIPS, FILMS):
            (data_dir / folder).mkdir(parents=True, exist_ok=True, mode=0o750)

    def clip(self, sha256: str) -> Path:
        """Where a clip is, or would be."""
        return self._named(CLIPS, sha256)

    def last_frame(self, clip_sha256: str) -> Path:
        """Where a clip's last frame is, or would be; it goes with the clip."""
        return self._named(CLIPS, clip_sha256, "png")

    def film(self, film_id: str) -> Path:
        """Where a published film is, or would be."""
        return self._named(FILMS, film_id)

    @contextmanager
    def temporary(self, folder: str) -> Iterator[Path]:
        """An empty file to be written, in the folder where it will be; what is left of it is removed.

        Raises:
            FileVanishedError: the block failed, and somebody had removed the file.
        """
        path = self._root / folder / f".{self._owner}-{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        path.touch(exist_ok=False)
        try:
            yield path
        except Exception as error:
            if path.exists():
                raise
            raise FileVanishedError from error
        finally:
            path.unlink(missing_ok=True)

    def publish(self, temporary: Path, final: Path) -> None:
        """Gives a finished file its name, at once and for good: it is on disk when this returns."""
        _sync(temporary)
        temporary.replace(final)
        _sync(final.parent)

    def is_intact(self, path: Path, sha256: str, size_bytes: int) -> bool:
        """Whether the file is there and still what it was."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != size_bytes:
                    return False
                digest = hashlib.file_digest(file, "sha256")
        except OSError:
            return False
        return digest.hexdigest() == sha256

    def remove_clip(self, sha256: str) -> None:
        """Removes a clip and its last frame, if they are there."""
        self.clip(sha256).unlink(missing_ok=True)
        self.last_frame(sha256).unlink(missing_ok=True)

    def remove_film(self, film_id: str) -> None:
        """Removes a published film, if it is there."""
        self.film(film_id).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """What this process may still write here."""
        return shutil.disk_usage(self._root).free

    def require_room(self, needed_bytes: int) -> None:
        """Makes sure that a file fits.

        Raises:
            FilmFailedError: DISK_FULL.
        """
        free_bytes = self.free_bytes()
        if free_bytes < needed_bytes + RESERVE_BYTES:
            raise disk_full_failure(needed_bytes + RESERVE_BYTES, free_bytes)

    def sweep(self, clip_in_use: Callable[[str], bool], film_in_use: Callable[[str], bool]) -> int:
        """At the start: removes what killed processes left, temporary files and old files that nothing refers to.

        Another gateway's temporary files are left alone while it runs.

        Returns:
            Files removed.
        """
        removed = sum(map(self.sweep_temporary, {owner for _, owner in self._temporary_files()}))
        for folder, in_use in ((CLIPS, clip_in_use), (FILMS, film_in_use)):
            for path in (self._root / folder).iterdir():
                named = bool(_FILE_NAME.fullmatch(path.name))
                if named and _age_s(path) > _ORPHAN_AGE_S and not in_use(path.stem):
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def sweep_temporary(self, owner: str) -> int:
        """Removes what an earlier run of this gateway, or another one, left in the making; returns how many files.

        One that is late, and was taken for dead, still holds its lock: its files are left to it.
        """
        if owner != self._owner and is_held(self._root, owner):
            return 0
        left = [path for path, its_owner in self._temporary_files() if its_owner == owner]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def _temporary_files(self) -> list[tuple[Path, str]]:
        """Files in the making, with their owners."""
        paths = [path for folder in (CLIPS, FILMS) for path in (self._root / folder).iterdir()]
        matches = [(path, _TEMPORARY_NAME.fullmatch(path.name)) for path in paths]
        return [(path, match["owner"]) for path, match in matches if match is not None]

    def _named(self, folder: str, stem: str, kind: str = "mp4") -> Path:
        name = f"{stem}.{kind}"
        if not _FILE_NAME.fullmatch(name):
            raise ValueError("a file's name is hexadecimal digits and nothing else")
        return self._root / folder / name


def read_pieces(path: Path, offset_bytes: int, piece_bytes: int = _READ_BYTES) -> Iterator[bytes]:
    """The file from an offset on, piece by piece; a link is not followed.

    Raises:
        OSError: the file is missing, a link, or can't be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        file.seek(offset_bytes)
        while piece := file.read(piece_bytes):
            yield piece


def _age_s(path: Path) -> float:
    """How long ago the file was written; nothing for one that another gateway has just removed."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
