"""Which gateways run on a data folder: each holds a lock file of its name until its process ends, however it ends.

It does not know what else is in the folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

# Somebody who only looks whether a lock is held has it for a moment.
_TRIES, _TRY_EVERY_S = 5, 0.1


def take(data_dir: Path, executor_id: str) -> int:
    """Holds the lock of a name until the process ends; returns its descriptor, whose closing lets go.

    Raises:
        ValueError: another process holds it.
    """
    descriptor = os.open(_path(data_dir, executor_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_EVERY_S)
        else:
            return descriptor
    os.close(descriptor)
    raise ValueError(
        f"another gateway named {executor_id!r} runs on this data_dir;"
        " stop it, or give this one another data_dir or executor_id"
    )


def is_held(data_dir: Path, executor_id: str) -> bool:
    """Whether a gateway of that name runs on the folder."""
    try:
        descriptor = os.open(_path(data_dir, executor_id), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # it never ran here
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _path(data_dir: Path, executor_id: str) -> Path:
    return data_dir / f".{executor_id}.lock"
