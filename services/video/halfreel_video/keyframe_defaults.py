"""How a keyframe model is run: at which size, with how many steps and which guidance. Knows nothing of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from halfreel_video.folder import ModelFolder, refused

_RANGES = {"width_px": (8, 4096), "height_px": (8, 4096), "step_count": (1, 100), "guidance_scale": (0, 50)}


@dataclass(frozen=True)
class KeyframeDefaults:
    """How a keyframe model is run: at the size it was trained for, with its own steps and guidance."""

    width_px: int
    height_px: int
    step_count: int
    guidance_scale: float

    @classmethod
    def of(cls, folder: ModelFolder, pipeline: Any) -> KeyframeDefaults:
        """Takes the model's own halfreel.json; what it lacks is as sd-turbo wants it: one step, no guidance.

        Raises:
            FailedPrecondition: MODEL_REFUSED; a value of halfreel.json is out of range.
        """
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        given: dict[str, float] = {"width_px": side, "height_px": side, "step_count": 1, "guidance_scale": 0}
        given.update(folder.metadata)
        for name, (low, high) in _RANGES.items():
            if not low <= given[name] <= high:
                raise refused(
                    folder.model_id, f"{name} in its halfreel.json is {given[name]}; it must be {low} to {high}"
                )
        return cls(
            width_px=int(given["width_px"]),
            height_px=int(given["height_px"]),
            step_count=int(given["step_count"]),
            guidance_scale=float(given["guidance_scale"]),
        )

    def size_for(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Returns the size to draw at: the clip's shape, the area that the model was trained for, multiples of 8."""
        scale = math.sqrt(self.width_px * self.height_px / (width_px * height_px))
        return max(8, round(width_px * scale / 8) * 8), max(8, round(height_px * scale / 8) * 8)
