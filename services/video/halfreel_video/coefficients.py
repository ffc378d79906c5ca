"""What a card was measured to take for a model's work: lines from amounts of work to bytes and to seconds.

Shipped with the package as measured on one card; `halfreel calibrate` measures the user's own and keeps it in the
user's cache, by card, model and arithmetic. Knows nothing of torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHIPPED, CALIBRATED = "shipped", "calibrated"
PLAIN, FUSED = "plain", "fused"
_FILE = Path(__file__).with_name("coefficients.json")


@dataclass(frozen=True)
class Line:
    """`base + slope * work`: bytes of the allocator at its peak, beside the weights.

    Work is in units, the bytes of one tensor of the model's full width over all that is computed at once, so that a
    slope is the number of such tensors alive at the peak and hardly depends on the model.
    """

    base_bytes: float
    slope: float

    def at(self, unit_bytes: float) -> int:
        """Bytes for one unit of so many bytes."""
        return round(self.base_bytes + self.slope * unit_bytes)


@dataclass(frozen=True)
class StepSpeed:
    """Seconds of one denoising step: per latent cell of all frames and guidance halves, and per pair within a frame."""

    base_s: float
    cell_s: float
    pair_s: float

    def at(self, cells: int, cells_per_frame: int) -> float:
        """Seconds for so many cells, of which each frame has `cells_per_frame`."""
        return self.base_s + self.cell_s * cells + self.pair_s * cells * cells_per_frame


@dataclass(frozen=True)
class Coefficients:
    """All that is known of one arithmetic on one card.

    Attributes:
        card: the device's name.
        source: "shipped" or "calibrated".
        context_bytes: what the driver keeps for the process beside the allocator.
        denoise: by `lever_key`: what the allocator holds where nothing is saved; else what is live at once, to which
            the allocator is held.
        decode: what is live at once, by frames at once, for so many and up to the next key: "1", "2", "4"; of fused
            blocks "fused 1" and so on, where they were measured.
        image_encode, vae_encode, keyframe: the other parts' lines.
        step: seconds of a denoising step by `lever_key`.
        decode_s: seconds of decoding one pixel of one frame, "plain" and, where they were measured, "fused".
        encode_s, keyframe_s: seconds of these phases.
        copy_bytes_s: bytes that cross the bus in a second, from pinned memory.
    """

    card: str
    source: str
    context_bytes: int
    denoise: Mapping[str, Line]
    decode: Mapping[str, Line]
    image_encode: Line
    vae_encode: Line
    keyframe: Line
    step: Mapping[str, StepSpeed]
    decode_s: Mapping[str, float]
    encode_s: float
    keyframe_s: float
    copy_bytes_s: float

    @classmethod
    def from_json(cls, given: Mapping[str, Any], source: str) -> Coefficients:
        """Reads what `to_json` gave."""
        lines = ("image_encode", "vae_encode", "keyframe")
        values: dict[str, Any] = dict(given) | {name: Line(**given[name]) for name in lines}
        for name in ("denoise", "decode"):
            values[name] = {key: Line(**line) for key, line in given[name].items()}
        values["decode_s"] = {key: float(seconds) for key, seconds in given["decode_s"].items()}
        values["step"] = {key: StepSpeed(**speed) for key, speed in given["step"].items()}
        return cls(**(values | {"source": source}))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


def lever_key(feed_forward_chunk_count: int, attention_backend: str, half_count: int) -> str:
    """The name under which the lines of a way to compute stand; that of fused blocks has `FUSED` for the attention.

    Args:
        feed_forward_chunk_count: parts that feed-forward layers are run in.
        attention_backend: "sdpa" or "sliced".
        half_count: halves of guidance that are computed at once: how well freed memory fits what comes next depends
            on it.
    """
    return f"{attention_backend}/{feed_forward_chunk_count}/{half_count}"


def shipped(dtype: str) -> Coefficients:
    """The package's own, for "float16", "bfloat16" or "float32"."""
    return Coefficients.from_json(_shipped()["dtypes"]["float16" if dtype == "bfloat16" else dtype], SHIPPED)


def shipped_architecture() -> dict[str, Any]:
    """SVD-XT with the keyframe model of sd-turbo, as plain values."""
    architecture: dict[str, Any] = _shipped()["architecture"]
    return architecture


def load(card: str, model_id: str, dtype: str) -> Coefficients:
    """Those of the user's own calibration of this card, model and arithmetic, or else the shipped ones."""
    file = cache_file(card, model_id, dtype)
    try:
        return Coefficients.from_json(json.loads(file.read_text(encoding="utf-8")), CALIBRATED)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ):  # none, or of another version: it is measured again
        return shipped(dtype)


def save(coefficients: Coefficients, model_id: str, dtype: str) -> Path:
    """Keeps a calibration, and returns the file."""
    file = cache_file(coefficients.card, model_id, dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(coefficients.to_json(), indent=1) + "\n", encoding="utf-8")
    written.replace(file)
    return file


def cache_file(card: str, model_id: str, dtype: str) -> Path:
    """Where a calibration of this card, model and arithmetic is kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in (card, model_id, dtype))
    return root / "halfreel" / "calibration" / f"{name}.json"


def _shipped() -> dict[str, Any]:
    given: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return given
