"""Draws the first picture of a clip from words, with the text-to-image model. Knows nothing of clips to come."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageOps

from halfreel_video.keyframe_defaults import KeyframeDefaults
from halfreel_video.svd import check_finite


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
