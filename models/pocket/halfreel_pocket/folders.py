"""Find the folder of an embedded model: the committed weights, or a random model of the same classes.

Does not know what is in the folders beyond their names, and imports torch only when it has to build one.
"""

import os
import shutil
import tempfile
from pathlib import Path

NAMES = ("glm", "keyframe", "svd")
RANDOM_SEED = 0
RANDOM_VERSION = 1  # raised when the random models change, so that an old cache is not used again

_WEIGHTS = Path(__file__).parent / "weights"


def folder(name: str) -> Path:
    """Folder of the embedded model `name`, one of NAMES, in the layout of `from_pretrained`.

    Where no trained weights are installed, a random model is built from a fixed seed into the user's
    cache: in a temporary folder first, then renamed, so that two processes may do this at once.

    Raises:
        ValueError: the name is not one of NAMES.
    """
    if name not in NAMES:
        raise ValueError(f"pocket model is {name!r}; it must be one of {', '.join(NAMES)}")
    trained = _WEIGHTS / name
    if trained.is_dir():
        return trained
    return _random(name)


def _random(name: str) -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "halfreel"
    target = caches / f"pocket-random-{RANDOM_VERSION}-{name}"
    if target.is_dir():
        return target
    caches.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=caches))
    try:
        from halfreel_pocket.random_models import save_random

        save_random(name, building, RANDOM_SEED)
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster otherwise: its folder is the same
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target
