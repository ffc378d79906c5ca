"""The file that tells where a running `halfreel up` has its servers, and the lock that tells that it runs."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

_STATE_NAME = "up.json"
_LOCK_NAME = "up.lock"


def default_data_folder() -> Path:
    """Where films, jobs and logs are kept unless told otherwise."""
    if chosen := os.environ.get("HALFREEL_DATA_DIR"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "halfreel"


@dataclass(frozen=True)
class Running:
    """A running `halfreel up`: its process, and its servers' addresses and processes by their names."""

    pid: int
    addresses: dict[str, str]
    pids: dict[str, int]

    def write(self, data_folder: Path) -> None:
        """Puts this in place of what was told before, at once."""
        temporary = data_folder / f".{_STATE_NAME}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
        temporary.replace(data_folder / _STATE_NAME)

    @classmethod
    def read(cls, data_folder: Path) -> Self | None:
        """What runs on this data folder; None when nothing does, whatever a killed `up` has left."""
        try:
            if not is_locked(data_folder):
                return None
            told = json.loads((data_folder / _STATE_NAME).read_text(encoding="utf-8"))
            return cls(int(told["pid"]), dict(told["addresses"]), dict(told["pids"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


class AlreadyUpError(Exception):
    """Another `halfreel up` has this data folder."""


@contextmanager
def held(data_folder: Path) -> Iterator[None]:
    """Keeps the data folder for this process; the lock ends with the process, however that ends.

    Raises:
        AlreadyUpError: it is kept by another.
    """
    data_folder.mkdir(parents=True, exist_ok=True)
    with (data_folder / _LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUpError from None
        try:
            yield
        finally:
            (data_folder / _STATE_NAME).unlink(missing_ok=True)


def is_locked(data_folder: Path) -> bool:
    """Whether a running `halfreel up` keeps this data folder."""
    try:
        with (data_folder / _LOCK_NAME).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
