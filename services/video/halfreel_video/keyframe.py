"""Draws the first picture of a clip from words, with the text-to-image model. Knows nothing of clips to come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps

from halfreel_video.folder import ModelFolder, refused
from halfreel_video.svd import check_finite

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


def draw_keyframe(
    pipeline: Any,
    defaults: KeyframeDefaults,
    prompt: str,
    width_px: int,
    height_px: int,
    seed: int,
) -> Image.Image:
    """Draws a picture of exactly `width_px` x `height_px`.

    Args:
        pipeline: the StableDiffusionPipeline.
        defaults: how to run it.
        prompt: what the picture shows; words beyond the text encoder's length (77 tokens in CLIP) are not seen.
        width_px: the clip's width.
        height_px: the clip's height.
        seed: decides the picture.

    Raises:
        Internal: NAN_DETECTED.
    """
    # A scheduler that an earlier, stopped call never touched.
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    drawn_width_px, drawn_height_px = defaults.size_for(width_px, height_px)
    pixels = pipeline(
        prompt,
        width=drawn_width_px,
        height=drawn_height_px,
        num_inference_steps=defaults.step_count,
        guidance_scale=defaults.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="pt",
    ).images
    check_finite(pixels, "the keyframe")
    picture = pipeline.image_processor.numpy_to_pil(pipeline.image_processor.pt_to_numpy(pixels))[0]
    return ImageOps.fit(picture, (width_px, height_px), Image.Resampling.LANCZOS)
