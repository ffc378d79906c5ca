"""Files that are read again when they change: how a change is seen, and how a secret one must be kept.

It does not know what is in them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

# Certificates, keys and token files are a few kilobytes; anything larger is another file, named by mistake.
MAX_FILE_BYTES = 1 << 20

# What differs when a file was written or replaced; None for one that is not there.
Signature = tuple[int, int, int] | None


class FileRefusedError(Exception):
    """One line on why a file can't be used, for a person who runs the server."""


def signature(path: Path) -> Signature:
    """Differs when the file was written or replaced, or a link to it was turned to another file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_public(path: Path, setting: str) -> bytes:
    """The bytes of a file that anybody may read.

    Args:
        path: the file.
        setting: its name in the settings, for the error.

    Raises:
        FileRefusedError: it can't be read, or is too large.
    """
    return _read(path, setting, secret=False)


def read_secret(path: Path, setting: str) -> bytes:
    """The bytes of a file that nobody else may read.

    The rule is PostgreSQL's for its keys: a file of one's own has no rights for group and others; one of root's may be
    read by a group (so does Kubernetes hand secrets to a process that is not root).

    Raises:
        FileRefusedError: others may read or write it, it can't be read, or is too large.
    """
    return _read(path, setting, secret=True)


def _read(path: Path, setting: str, *, secret: bool) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if secret:
                _check_rights(status, path, setting)
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileRefusedError(f"{setting} {path} can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise FileRefusedError(f"{setting} {path} is larger than {MAX_FILE_BYTES} bytes")
    return content


def _check_rights(status: os.stat_result, path: Path, setting: str) -> None:
    of_root = status.st_uid == 0 and os.geteuid() != 0
    forbidden = stat.S_IMODE(status.st_mode) & (0o137 if of_root else 0o177)
    if forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise FileRefusedError(
            f"{setting} {path} has the rights {mode:04o}, so that others may get at it; "
            f"make them {'0640' if of_root else '0600'} (chmod)"
        )
