"""Where compiled kernels are kept between starts: folders that nobody else can write to, for what lies there is run.

Knows no kernel.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path


def keep_kernels(environ: MutableMapping[str, str], folders: Mapping[str, str]) -> None:
    """Tells compilers of private folders, before they are imported; those that the operator named stay.

    They lie in `halfreel` under XDG_CACHE_HOME or ~/.cache; where that can't be made or is open to others, in a folder
    of this process alone. Where not even that can be made, a compiler is told nothing.

    Args:
        environ: what the compilers read.
        folders: the name of each one's folder, by its variable.
    """
    named = environ.get("XDG_CACHE_HOME")
    cache = (Path(named) if named else Path(environ.get("HOME", os.sep)) / ".cache") / "halfreel"
    for variable, name in folders.items():
        if environ.get(variable):
            continue
        folder = cache / name
        if _is_ours(folder):
            environ[variable] = str(folder)
            continue
        with contextlib.suppress(OSError):
            environ[variable] = tempfile.mkdtemp(prefix=f"halfreel-{name}-")


def _is_ours(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return private and found.st_uid == os.getuid() and os.access(folder, os.W_OK)
