"""Find the folder of an embedded model. Does not know what is in the folders."""

from pathlib import Path

NAMES = ("glm", "keyframe", "svd")

_WEIGHTS = Path(__file__).parent / "weights"


def folder(name: str) -> Path:
    """Folder of the embedded model `name`, one of NAMES, in the layout of `from_pretrained`.

    Raises:
        ValueError: the name is not one of NAMES.
    """
    if name not in NAMES:
        raise ValueError(f"pocket model is {name!r}; it must be one of {', '.join(NAMES)}")
    return _WEIGHTS / name
