"""Where compiled code is kept between starts: a folder that nobody else can write to, for what lies there is run.

Knows no kernel.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

# What PyTorch's compiler and Triton read when they are imported, and the folder of each within ours.
_VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "kernels"}


def keep_kernels(environ: MutableMapping[str, str]) -> None:
    """Tells the compilers of private folders, before torch is imported; those that the operator named stay.

    They lie in `halfreel` under XDG_CACHE_HOME or ~/.cache; where that can't be made or is open to others, in a folder
    of this process alone.
    """
    named = environ.get("XDG_CACHE_HOME")
    cache = (Path(named) if named else Path(environ.get("HOME", os.sep)) / ".cache") / "halfreel"
    for variable, name in _VARIABLES.items():
        if not environ.get(variable):
            folder = cache / name
            environ[variable] = str(folder) if _is_ours(folder) else tempfile.mkdtemp(prefix=f"halfreel-{name}-")


def _is_ours(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return private and found.st_uid == os.getuid() and os.access(folder, os.W_OK)
