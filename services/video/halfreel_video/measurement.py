"""Runs single phases of a clip by themselves, as a clip's job runs them, and reads what each took of the device.

What a calibration and the benchmarks measure with. Knows nothing of what is fitted to the figures.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from halfreel_video.clip import ClipRequest
from halfreel_video.keyframe import draw_keyframe
from halfreel_video.layout import IMAGE_ENCODER, KEYFRAME, UNET, VAE
from halfreel_video.levers import Levers
from halfreel_video.model import VideoModel
from halfreel_video.phase_cap import PhaseCap
from halfreel_video.predictor import Conditioning
from halfreel_video.svd import Denoising, decode_chunk, embed, encode


@dataclass
class Taken:
    """What a phase took: the allocator's peaks, the weights that were on the device, and seconds of its last piece."""

    reserved_bytes: int = 0
    allocated_bytes: int = 0
    weight_bytes: int = 0
    seconds: float = 0.0
    piece_s: list[float] = field(default_factory=list)


class Measurement:
    """The phases of clips of one model; on a CPU the bytes are zero."""

    def __init__(self, model: VideoModel) -> None:
        """Takes a loaded model."""
        self._model = model
        self._cap = PhaseCap(model.layout.device)
        self._cuda = model.device.kind == "cuda"

    def keyframe(self, clip: ClipRequest) -> tuple[Image.Image, Taken]:
        """Draws the first picture."""
        model = self._model
        with self._phase(KEYFRAME) as taken:
            model.layout.use(KEYFRAME)
            picture = draw_keyframe(
                model.keyframe, model.keyframe_defaults, clip.prompt, clip.width_px, clip.height_px, clip.seed
            )
        return picture, taken

    def encode(self, clip: ClipRequest, picture: Image.Image) -> tuple[Conditioning, Taken, Taken]:
        """Encodes the first picture; returns what looking at it took and what the VAE took."""
        model, generator = self._model, torch.Generator("cpu").manual_seed(clip.seed)
        with self._phase(IMAGE_ENCODER) as looking:
            model.layout.use(IMAGE_ENCODER)
            embeddings = embed(model.svd, picture, clip, model.layout.device)
        with self._phase(VAE) as encoding:
            model.layout.use(VAE)
            frames = min(clip.frame_count, clip.segment_frame_count)
            conditioning = encode(model.svd, picture, clip, frames, generator, embeddings)
        return conditioning, looking, encoding

    def conditioning(self, clip: ClipRequest) -> Conditioning:
        """Random numbers of the shapes that `encode` gives, for a denoising by itself."""
        model = self._model
        device, dtype, halves = model.layout.device, model.layout.dtype, 2 if clip.guidance_scale > 1 else 1
        size = model.svd.unet.config.cross_attention_dim
        cells = (halves, clip.frame_count, 4, clip.height_px // 8, clip.width_px // 8)
        return Conditioning(
            torch.randn(halves, 1, size, device=device, dtype=dtype),
            torch.randn(cells, device=device, dtype=dtype),
            torch.ones(halves, 3, device=device, dtype=dtype),
            halves == 2,
        )

    def denoise(
        self, clip: ClipRequest, conditioning: Conditioning, *, timed: bool = False, cap_bytes: int = 0
    ) -> tuple[torch.Tensor, Taken]:
        """Does all steps.

        Args:
            clip: how many, and by which levers.
            conditioning: what `encode` gave.
            timed: does each by itself, so that the times of few of them are those of many.
            cap_bytes: holds it to so many bytes, where that is enough; 0 does not.
        """
        model, generator = self._model, torch.Generator("cpu").manual_seed(clip.seed)
        with self._phase(UNET) as taken, self._cap.at(cap_bytes):
            denoising = Denoising(model.svd, conditioning, clip, generator)
            denoising.ahead_count = 0 if timed else denoising.ahead_count
            began_at = time.monotonic()
            while denoising.done_count < denoising.step_count:
                model.layout.use(UNET)
                if self._cap.run(denoising.advance) is not None:
                    taken.piece_s.append(time.monotonic() - began_at)
                    began_at = time.monotonic()
        return denoising.latents, taken

    def decode(
        self, latents: torch.Tensor, levers: Levers, *, cap_bytes: int = 0
    ) -> tuple[list[NDArray[np.uint8]], Taken]:
        """Decodes all frames; `cap_bytes` as `denoise` has it."""
        model, chunks, size = self._model, [], levers.decode_chunk_frame_count
        with self._phase(VAE) as taken, self._cap.at(cap_bytes):
            model.layout.use(VAE)
            for part in latents.split(size, dim=1):
                model.layout.release_cached()
                began_at = time.monotonic()
                chunks.append(self._cap.run(functools.partial(decode_chunk, model.svd, part)))
                taken.piece_s.append(time.monotonic() - began_at)
        return chunks, taken

    @contextmanager
    def _phase(self, part: str) -> Iterator[Taken]:
        """As a job's stage: what it does not need is gone before it is measured."""
        layout, taken = self._model.layout, Taken()
        layout.clear_for(part)
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began_at = time.monotonic()
        yield taken
        if self._cuda:
            torch.cuda.synchronize()
            taken.reserved_bytes = int(torch.cuda.max_memory_reserved())
            taken.allocated_bytes = int(torch.cuda.max_memory_allocated())
        taken.seconds = time.monotonic() - began_at
        taken.weight_bytes = layout.device_bytes()
