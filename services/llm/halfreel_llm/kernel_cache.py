"""Where compiled kernels are kept between starts: a folder that nobody else can write to, for what lies there is run.

Knows no kernel.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

_VARIABLE = "TRITON_CACHE_DIR"


def keep_kernels(environ: MutableMapping[str, str]) -> None:
    """Tells Triton of a private folder, before it is imported; one that the operator named stays.

    It is `halfreel/kernels` under XDG_CACHE_HOME or ~/.cache; where that can't be made or is open to others, a folder
    of this process alone.
    """
    if environ.get(_VARIABLE):
        return
    named = environ.get("XDG_CACHE_HOME")
    folder = (Path(named) if named else Path(environ.get("HOME", os.sep)) / ".cache") / "halfreel" / "kernels"
    environ[_VARIABLE] = str(folder) if _is_ours(folder) else tempfile.mkdtemp(prefix="halfreel-kernels-")


def _is_ours(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return private and found.st_uid == os.getuid() and os.access(folder, os.W_OK)
