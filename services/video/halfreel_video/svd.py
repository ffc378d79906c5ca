"""Stable Video Diffusion, step by step: encode a picture, denoise latents, decode frames.

The arithmetic and its order are those of diffusers' StableVideoDiffusionPipeline.__call__ (0.42), so that the frames
equal that pipeline's bit by bit, with the same UNet; only the loops are ours, to stop, report and check between any two
steps. Knows nothing of requests in a queue, memory or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image

from halfreel_runtime.errors import Internal
from halfreel_video.clip import ClipRequest
from halfreel_video.lean_unet import make_lean
from halfreel_video.predictor import Conditioning, Predictor
from halfreel_video.remote_half import RemoteHalf
from halfreel_video.replica import Replica
from halfreel_video.trades import PARTIAL_GUIDANCE

NOISE_AUGMENTATION = 0.02  # noise on the first picture; diffusers' default, which SVD was trained around
_WITHOUT_PICTURE, _WITH_PICTURE = slice(0, 1), slice(1, 2)  # the halves of guidance
MIN_GUIDANCE_SCALE = 1.0  # of the first frame; grows to the request's scale at the last


class NanDetected(Internal):
    """The model gave values that are not numbers; more precise arithmetic may help."""

    default_reason = "NAN_DETECTED"


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
def embed(pipeline: Any, picture: Image.Image, clip: ClipRequest, device: torch.device) -> torch.Tensor:
    """Looks at the first picture of a clip with the image encoder, which must be on the device."""
    embeddings: torch.Tensor = pipeline._encode_image(picture, device, 1, clip.guidance_scale > 1)
    return embeddings


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
def encode(
    pipeline: Any,
    picture: Image.Image,
    clip: ClipRequest,
    frame_count: int,
    generator: torch.Generator,
    embeddings: torch.Tensor | None = None,
) -> Conditioning:
    """Encodes the first picture of a clip, which must have the clip's own size, with the VAE.

    Args:
        pipeline: the StableVideoDiffusionPipeline; its VAE is on the device.
        picture: the first picture.
        clip: the request.
        frame_count: frames of this part of the clip.
        generator: draws the noise that the picture gets.
        embeddings: what `embed` gave; None calls it here.
    """
    if embeddings is None:
        embeddings = embed(pipeline, picture, clip, pipeline.device)
    device, guided = embeddings.device, clip.guidance_scale > 1
    pixels = pipeline.video_processor.preprocess(picture, height=clip.height_px, width=clip.width_px).to(device)
    noise = randn_tensor(pixels.shape, generator=generator, device=device, dtype=pixels.dtype)
    with upcast(pipeline.vae):
        latents = pipeline._encode_vae_image(pixels + NOISE_AUGMENTATION * noise, device, 1, guided)
    latents = latents.to(embeddings.dtype).unsqueeze(1).repeat(1, frame_count, 1, 1, 1)
    # SVD was trained on fps - 1.
    time_ids = pipeline._get_add_time_ids(
        clip.fps - 1, clip.motion_bucket, NOISE_AUGMENTATION, embeddings.dtype, 1, 1, guided
    )
    return Conditioning(embeddings, latents, time_ids.to(device), guided)


@dataclass
class _UnderWay:
    """A step that the device was told to do.

    `latents` and `index` are as before it; `finite` and `shown` are on the host once `over` has come.
    """

    latents: torch.Tensor
    index: int
    finite: torch.Tensor
    shown: torch.Tensor
    over: Any


class Denoising:
    """The latents of one clip on their way out of the noise.

    Has a scheduler of its own, so that a pipeline left in the middle of one clip is clean for the next.
    """

    def __init__(
        self, pipeline: Any, conditioning: Conditioning, clip: ClipRequest, generator: torch.Generator
    ) -> None:
        """Draws the noise.

        Args:
            pipeline: the StableVideoDiffusionPipeline; its UNet is made lean.
            conditioning: what `encode` gave.
            clip: the request; its step count, guidance scale, levers and trades are used.
            generator: the one that `encode` drew from; the order of the draws decides the clip.
        """
        make_lean(pipeline.unet)
        self._predictor = Predictor(pipeline.unet, conditioning, clip.trades)
        self._conditioning = conditioning
        self._scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        device = conditioning.image_embeddings.device
        self._scheduler.set_timesteps(clip.step_count, device=device)
        self._scheduler.set_begin_index(0)  # else it asks the device where it is
        _, frame_count, channel_count, height, width = conditioning.image_latents.shape
        dtype = conditioning.image_embeddings.dtype
        noise = randn_tensor(
            (1, frame_count, channel_count, height, width), generator=generator, device=device, dtype=dtype
        )
        self._latents = noise * self._scheduler.init_noise_sigma
        scale = torch.linspace(MIN_GUIDANCE_SCALE, clip.guidance_scale, frame_count)
        self._guidance_scale = scale.to(device, dtype).reshape(1, frame_count, 1, 1, 1)
        self._index = 0
        self._on_gpu = device.type == "cuda"
        self._trades = clip.trades
        self._unet = pipeline.unet
        self._remote: RemoteHalf | None = None
        self._under_way: list[_UnderWay] = []
        self.split_guidance = clip.levers.split_guidance
        self.replica: Replica | None = None  # computes the half without the picture, beside the other one
        self.ahead_count = 1 if self._on_gpu else 0

    @property
    def step_count(self) -> int:
        """Steps from first to last."""
        return len(self._scheduler.timesteps)

    @property
    def done_count(self) -> int:
        """Steps that are over."""
        return self._index - len(self._under_way)

    @property
    def latents(self) -> torch.Tensor:
        """The latents after the steps begun, of shape (1, frames, 4, height / 8, width / 8)."""
        return self._latents

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
    def step(self) -> torch.Tensor:
        """Does one step and waits for the device; returns the middle frame's clean latents as predicted now.

        A step that fails changes nothing, and can be done again.

        Returns:
            Latents of shape (4, height / 8, width / 8), on the host.

        Raises:
            NanDetected: the latents would be no numbers any more.
        """
        self._begin()
        while True:
            shown = self._wait()
            if not self._under_way:
                return shown

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
    def advance(self) -> torch.Tensor | None:
        """Begins the next step, and on a GPU waits only for the one before, so that the device never waits for us.

        A step that fails changes nothing, also where the next one has begun; it can be done again.

        Returns:
            As `step`, of the step that is over now; None where there is none yet.

        Raises:
            NanDetected: as `step`.
        """
        if self._index < self.step_count:
            self._begin()
            if len(self._under_way) <= self.ahead_count:
                return None
        return self._wait()

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Goes on in another arithmetic, to which the UNet has been switched."""
        self._conditioning = self._conditioning.to(dtype)
        self._predictor = Predictor(self._unet, self._conditioning, self._trades)
        self.replica = self._remote = None  # which is in the arithmetic before
        self._latents, self._guidance_scale = self._latents.to(dtype), self._guidance_scale.to(dtype)

    def _begin(self) -> None:
        """Tells the device to do a step."""
        timestep, before = self._scheduler.timesteps[self._index], self._scheduler._step_index
        try:
            result = self._scheduler.step(self._noise(timestep), timestep, self._latents)
            after = result.prev_sample
            # What is no number in the noise is none in the latents either.
            finite = torch.isfinite(after).all().to("cpu", non_blocking=True)
            clean = result.pred_original_sample[0, after.shape[1] // 2]
            shown = clean.float().to("cpu", non_blocking=True)
            over = torch.cuda.Event() if self._on_gpu else None
        except BaseException:
            self._scheduler._step_index = before
            raise
        if over is not None:
            over.record()
        self._under_way.append(_UnderWay(self._latents, self._index, finite, shown, over))
        self._latents = after
        self._index += 1

    def _wait(self) -> torch.Tensor:
        """Waits for the first step under way."""
        first = self._under_way[0]
        if first.over is not None:
            first.over.synchronize()
        if bool(first.finite):
            return self._under_way.pop(0).shown
        self._scheduler._step_index -= len(self._under_way)
        self._under_way.clear()
        dtype = self._latents.dtype
        self._latents, self._index = first.latents, first.index
        raise _not_finite(dtype, f"denoising step {first.index + 1}")

    def _noise(self, timestep: torch.Tensor) -> torch.Tensor:
        """The noise in the latents as the UNet sees it, both halves of guidance joined."""
        scaled = self._scheduler.scale_model_input(self._latents, timestep)
        if not self._conditioning.guided:
            return self._predict(scaled, timestep, slice(None))
        if PARTIAL_GUIDANCE.rests(self._trades, self._index, self.step_count):
            return self._predict(scaled, timestep, _WITH_PICTURE)
        if self.replica is not None and self.replica.usable:
            without, with_picture = self._side_by_side(scaled, timestep, self.replica)
        elif self.split_guidance:
            without = self._predict(scaled, timestep, _WITHOUT_PICTURE)
            with_picture = self._predict(scaled, timestep, _WITH_PICTURE)
        else:
            both = self._predict(torch.cat([scaled] * 2), timestep, slice(None))
            without, with_picture = both.chunk(2)
        return without + self._guidance_scale * (with_picture - without)

    def _side_by_side(
        self, scaled: torch.Tensor, timestep: torch.Tensor, replica: Replica
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both halves, one by a replica; where that fails, this device goes on alone, with the same numbers."""
        remote = self._remote
        if remote is None or remote.replica is not replica:
            remote = self._remote = RemoteHalf(replica, self._conditioning, _WITHOUT_PICTURE, self._trades)
        remote.start(scaled, timestep, self._index)
        try:
            with_picture = self._predict(scaled, timestep, _WITH_PICTURE)
        except BaseException:
            remote.wait()
            raise
        without = remote.finish(scaled.device)
        if without is None:
            without = self._predict(scaled, timestep, _WITHOUT_PICTURE)
        return without, with_picture

    def _predict(self, scaled: torch.Tensor, timestep: torch.Tensor, halves: slice) -> torch.Tensor:
        return self._predictor.predict(scaled, timestep, halves, self._index)


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
def decode(pipeline: Any, latents: torch.Tensor, chunk_frame_count: int) -> Iterator[NDArray[np.uint8]]:
    """Decodes latents a chunk at a time.

    Args:
        pipeline: the StableVideoDiffusionPipeline.
        latents: of shape (1, frames, 4, height / 8, width / 8).
        chunk_frame_count: frames at once. The decoder looks at neighbouring frames, so this can change pixels.

    Yields:
        RGB frames of shape (at most chunk_frame_count, height, width, 3).

    Raises:
        NanDetected: the frames are no numbers.
    """
    for start in range(0, latents.shape[1], chunk_frame_count):
        yield decode_chunk(pipeline, latents[:, start : start + chunk_frame_count])


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
def decode_chunk(pipeline: Any, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Decodes latents of a few frames at once; as `decode`, wherever and in whichever arithmetic the VAE is."""
    vae = pipeline.vae
    chunk = (1 / vae.config.scaling_factor * latents.flatten(0, 1)).to(vae.device, vae.dtype)
    frames = vae.decode(chunk, num_frames=len(chunk)).sample
    check_finite(frames, "decoding")
    return to_rgb(frames)


def to_rgb(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """Turns pixels in [-1, 1] of shape (frames, 3, height, width) to RGB bytes of shape (frames, height, width, 3)."""
    scaled = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    array: NDArray[np.uint8] = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def check_finite(tensor: torch.Tensor, where: str) -> None:
    """Raises NanDetected unless all elements are finite; a NaN would become a black film. Waits for the device."""
    if not bool(torch.isfinite(tensor).all()):
        raise _not_finite(tensor.dtype, where)


def _not_finite(arithmetic: torch.dtype, where: str) -> NanDetected:
    dtype = str(arithmetic).removeprefix("torch.")
    return NanDetected(
        f"the model gave values that are not numbers in {where}, in {dtype}; start the server with precision bf16 "
        "or fp32, or check the model's weights",
        metadata={"dtype": dtype, "where": where},
    )


@contextmanager
def upcast(vae: Any) -> Iterator[None]:
    """Runs a VAE that overflows in FP16 in FP32, and puts it back whatever happens."""
    if not (vae.dtype == torch.float16 and vae.config.force_upcast):
        yield
        return
    # Put back by these and not converted back: that takes no memory, and leaves the weights in the piece they lie in.
    kept = [(parameter, parameter.data) for parameter in vae.parameters()]
    try:
        # torch's own method: that of diffusers warns, at every call, of parts to be kept in FP32 when there are none.
        torch.nn.Module.to(vae, torch.float32)
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values
