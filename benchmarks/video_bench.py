"""One video model and its clip, as diffusers renders it and as the server does: what benchmarks time.

Import it after the allocator and the hub client were told. It does not know which ways are compared.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from dataclasses import dataclass, field
from typing import Any

import make_svd_xt
import numpy as np
import torch
from PIL import Image

from halfreel_video.clip import ClipRequest
from halfreel_video.folder import KEYFRAME, SVD, open_folder
from halfreel_video.lean_unet import make_lean
from halfreel_video.levers import Levers
from halfreel_video.loading import load_keyframe, load_svd
from halfreel_video.preview import LatentColours
from halfreel_video.svd import Denoising, decode, encode

PREVIEW_COUNT = 20
SIZES = {"real": (1024, 576, 25), "tiny": (64, 64, 5)}


@dataclass
class Taken:
    """What one variant's clips took; the first clip of each is a warm-up and counts for nothing but its frames."""

    clip_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    vae_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    frames: Any = None
    prepared_s: float = 0.0
    previews: bool = False
    preview_s: list[float] = field(default_factory=list)


class Bench:
    """One pipeline in one arithmetic, and its clip."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device("cuda:0" if arguments.model == "real" else "cpu")
        self.on_gpu = self.device.type == "cuda"
        began_at = time.monotonic()
        self.pipeline, (width, height, frame_count), steps, scale, picture = load(arguments.model, self.device)
        self.unet = self.pipeline.unet  # as it comes
        self.lean = copy.deepcopy(self.unet)
        make_lean(self.lean)
        if picture is None:
            noise = np.random.default_rng(1).integers(0, 255, (9, 16, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        self.picture = picture
        self.step_count = arguments.step_count or steps
        self.whole = self.step_count == steps
        self.clip = ClipRequest(
            request_id="clip",
            prompt="",
            image=picture,
            width_px=width,
            height_px=height,
            frame_count=frame_count,
            step_count=self.step_count,
            fps=7,
            motion_bucket=127,
            guidance_scale=scale,
            seed=1,
            preview=False,
            levers=Levers(),
            segment_frame_count=frame_count,
        )
        self.colours = LatentColours(self.pipeline)
        self.built_s = time.monotonic() - began_at

    def sync(self) -> None:
        """Waits for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Frees what the variant before left."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def as_it_comes(self, taken: Taken, unet: Any = None) -> Any:
        """The call of diffusers; steps are told apart by its callback, which waits for the device."""
        stamps: list[float] = []

        def stamp(_pipeline: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            self.sync()
            stamps.append(time.monotonic())
            return values

        clip = self.clip
        self.pipeline.unet = unet if unet is not None else self.unet
        self.sync()
        began_at = time.monotonic()
        pictures = self.pipeline(
            self.picture,
            height=clip.height_px,
            width=clip.width_px,
            num_frames=clip.frame_count,
            num_inference_steps=clip.step_count,
            fps=clip.fps,
            motion_bucket_id=clip.motion_bucket,
            max_guidance_scale=clip.guidance_scale,
            decode_chunk_size=8,
            generator=torch.Generator("cpu").manual_seed(clip.seed),
            callback_on_step_end=stamp,
        ).frames[0]
        ended_at = time.monotonic()
        taken.clip_s.append(ended_at - began_at)
        taken.step_s += np.diff(stamps).tolist()
        taken.vae_s.append(ended_at - stamps[-1])
        return np.stack([np.asarray(each) for each in pictures])

    def ours(self, taken: Taken, unet: Any, trades: tuple[str, ...] = ()) -> Any:
        """The server's loops, to RGB frames."""
        self.pipeline.unet = unet
        clip = ClipRequest(**(vars(self.clip) | {"trades": trades}))
        self.sync()
        began_at = time.monotonic()
        generator = torch.Generator("cpu").manual_seed(clip.seed)
        conditioning = encode(self.pipeline, self.picture, clip, clip.frame_count, generator)
        denoising = Denoising(self.pipeline, conditioning, clip, generator)
        stamps: list[float] = []
        while denoising.done_count < denoising.step_count:
            if (shown := denoising.advance()) is not None:
                stamps.append(time.monotonic())
        for _ in range(PREVIEW_COUNT if taken.previews else 0):
            drawn_at = time.monotonic()
            self.colours.jpeg(shown)
            taken.preview_s.append(time.monotonic() - drawn_at)
            stamps[-1] += taken.preview_s[-1]  # so that the VAE's time is its own
            began_at += taken.preview_s[-1]
        frames = np.concatenate(list(decode(self.pipeline, denoising.latents, 8)))
        ended_at = time.monotonic()
        taken.clip_s.append(ended_at - began_at)
        taken.vae_s.append(ended_at - stamps[-1])
        stamps[-1] -= sum(taken.preview_s[-PREVIEW_COUNT:])
        steps = np.diff(stamps).tolist()
        # On a GPU the next step has begun when one is told to be over, so that the last one seems shorter than it is.
        taken.step_s += steps[:-1] if self.on_gpu and len(steps) > 1 else steps
        return frames

    def exact(self, taken: Taken) -> Any:
        """The server's clip as it is without trades, and what a preview takes."""
        taken.previews = True
        return self.ours(taken, self.lean)

    def in_fp32(self) -> Any:
        """The clip in FP32, by diffusers' own UNet; the parts come back as they were."""
        half = next(self.unet.parameters()).dtype
        parts = (self.unet, self.pipeline.vae, self.pipeline.image_encoder)
        for part in parts:
            torch.nn.Module.to(part, torch.float32)
        try:
            return self.as_it_comes(Taken())
        finally:
            for part in parts:
                torch.nn.Module.to(part, half)


def load(name: str, device: torch.device) -> tuple[Any, tuple[int, int, int], int, float, Any]:
    """A pipeline, its clip's size, steps and guidance, and a first picture where the model draws one."""
    if name == "pocket":
        from halfreel_video.keyframe import draw_keyframe
        from halfreel_video.keyframe_defaults import KeyframeDefaults
        from halfreel_video.model import ClipDefaults

        folder, keyframe_folder = open_folder("pocket", SVD), open_folder("pocket", KEYFRAME)
        pipeline = load_svd(folder, torch.float32, device)
        # Ours is a copy: diffusers' own forward is put back.
        pipeline.unet = pristine(pipeline.unet)
        keyframe = load_keyframe(keyframe_folder, torch.float32, device)
        defaults = ClipDefaults.of(folder, int(pipeline.unet.config.num_frames))
        size = defaults.width_px, defaults.height_px, defaults.frame_count
        drawn = KeyframeDefaults.of(keyframe_folder, keyframe)
        picture = draw_keyframe(keyframe, drawn, "a red circle moving over a blue sky", size[0], size[1], 1)
        return pipeline, size, defaults.step_count, defaults.guidance_scale, picture
    torch.manual_seed(0)
    pipeline = make_svd_xt.svd_xt(make_svd_xt.SIZES[name], device)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.image_encoder):
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        torch.nn.Module.to(part, device, dtype).eval().requires_grad_(False)
    return pipeline, SIZES[name], 25, 3.0, None


def pristine(unet: Any) -> Any:
    """The same weights under diffusers' own forward."""
    fresh = type(unet).from_config(unet.config).eval().requires_grad_(False)
    fresh.load_state_dict(unet.state_dict())
    return fresh
