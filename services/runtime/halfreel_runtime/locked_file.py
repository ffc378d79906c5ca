"""Files that count only while a living process has them locked, in a folder that one user's processes share.

The system gives a lock back when its owner ends, however that ends; so what a file says is never older than its owner.
It does not know what the files say.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from pathlib import Path

from halfreel_runtime.errors import FailedPrecondition

_SAFE = re.compile(r"[A-Za-z0-9_-]+")
# A file is without its name for as long as a lock and a write take, below a millisecond.
_UNNAMED_S = 60.0


class LockedFile:
    """A file that is there, under its name, for as long as this process lives and keeps it."""

    def __init__(self, folder: Path, name: str, content: bytes = b"") -> None:
        self._path = folder / name
        # Locked before it has its name, or somebody would find it unlocked and take its owner for dead.
        unnamed = folder / f".{name}"
        self._file = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.write(content)
        unnamed.rename(self._path)

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.name

    def rename(self, name: str) -> None:
        """Gives it another name; it is there under the one or the other at any moment."""
        self._path = self._path.rename(self._path.with_name(name))

    def write(self, content: bytes) -> None:
        """Says something else than before; less than 256 bytes, so that no reader finds half of it."""
        os.pwrite(self._file, content.ljust(256), 0)

    def close(self) -> None:
        """Takes it away."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def removed_if_dead(path: Path) -> bool:
    """Whether nobody holds the lock of a file any more; then it is removed."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # it has just gone
        return True
    except OSError:  # no more files may be open: that says nothing of its owner
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)


def remove_unnamed(folder: Path) -> None:
    """Removes what processes left that were killed before their file had its name."""
    for path in folder.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            # Younger ones may be of somebody who is about to lock them.
            if time.time() - path.lstat().st_mtime > _UNNAMED_S:
                removed_if_dead(path)


def private_folder(folder: Path, gpu_uuid: str) -> Path:
    """The device's folder in the shared one, made where it is missing.

    Raises:
        FailedPrecondition: it can't be made, is somebody else's, or others may write to it.
    """
    if not _SAFE.fullmatch(gpu_uuid):
        raise FailedPrecondition(f"the device calls itself {gpu_uuid!r}; that can't be the name of a folder.")
    own = folder / gpu_uuid
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own.mkdir(mode=0o700, exist_ok=True)
        for each in (folder, own):
            status = each.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise FailedPrecondition(
                    "turns_dir must be a folder of this user's own, which nobody else may enter (chmod 700)."
                )
    except OSError as error:
        raise FailedPrecondition(f"the folder of turns_dir can't be used: {error.strerror}.") from None
    return own
