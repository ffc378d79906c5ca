"""Stable Video Diffusion, step by step: encode a picture, denoise latents, decode frames.

The arithmetic and its order are those of diffusers' StableVideoDiffusionPipeline.__call__ (0.42), so that the frames
equal that pipeline's bit by bit; only the loops are ours, to stop, report and check between any two steps. Knows
nothing of requests in a queue, memory or files.
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

NOISE_AUGMENTATION = 0.02  # noise on the first picture; diffusers' default, which SVD was trained around
MIN_GUIDANCE_SCALE = 1.0  # of the first frame; grows to the request's scale at the last


@dataclass(frozen=True)
class Conditioning:
    """What a clip starts from.

    With guidance the first dimension is 2 (without and with the picture), otherwise 1: `image_embeddings`
    (1 or 2, 1, embedding), `image_latents` (1 or 2, frames, 4, height / 8, width / 8), `added_time_ids` (1 or 2, 3).
    """

    image_embeddings: torch.Tensor
    image_latents: torch.Tensor
    added_time_ids: torch.Tensor
    guided: bool


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


class Denoising:
    """The latents of one clip on their way out of the noise.

    Has a scheduler of its own, so that a pipeline left in the middle of one clip is clean for the next.
    """

    def __init__(
        self, pipeline: Any, conditioning: Conditioning, clip: ClipRequest, generator: torch.Generator
    ) -> None:
        """Draws the noise.

        Args:
            pipeline: the StableVideoDiffusionPipeline.
            conditioning: what `encode` gave.
            clip: the request; its step count, guidance scale and levers are used.
            generator: the one that `encode` drew from; the order of the draws decides the clip.
        """
        self._unet = pipeline.unet
        self._conditioning = conditioning
        self._scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        device = conditioning.image_embeddings.device
        self._scheduler.set_timesteps(clip.step_count, device=device)
        _, frame_count, channel_count, height, width = conditioning.image_latents.shape
        dtype = conditioning.image_embeddings.dtype
        noise = randn_tensor(
            (1, frame_count, channel_count, height, width), generator=generator, device=device, dtype=dtype
        )
        self._latents = noise * self._scheduler.init_noise_sigma
        scale = torch.linspace(MIN_GUIDANCE_SCALE, clip.guidance_scale, frame_count)
        self._guidance_scale = scale.to(device, dtype).reshape(1, frame_count, 1, 1, 1)
        self._index = 0
        self.split_guidance = clip.levers.split_guidance

    @property
    def step_count(self) -> int:
        """Steps from first to last."""
        return len(self._scheduler.timesteps)

    @property
    def latents(self) -> torch.Tensor:
        """The latents after the steps done, of shape (1, frames, 4, height / 8, width / 8)."""
        return self._latents

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
    def step(self) -> torch.Tensor:
        """Does one step, waits for the device, and returns the clean latents as predicted now.

        A step that fails changes nothing, and can be done again.

        Raises:
            NanDetected: the latents would be no numbers any more.
        """
        timestep = self._scheduler.timesteps[self._index]
        noise = self._noise(timestep)
        check_finite(noise, f"denoising step {self._index + 1}")
        result = self._scheduler.step(noise, timestep, self._latents)
        try:
            check_finite(result.prev_sample, f"denoising step {self._index + 1}")
        except NanDetected:
            self._scheduler._step_index -= 1
            raise
        self._latents = result.prev_sample
        self._index += 1
        return result.pred_original_sample

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Goes on in another arithmetic, to which the UNet has been switched."""
        given = self._conditioning
        self._conditioning = Conditioning(
            given.image_embeddings.to(dtype),
            given.image_latents.to(dtype),
            given.added_time_ids.to(dtype),
            given.guided,
        )
        self._latents, self._guidance_scale = self._latents.to(dtype), self._guidance_scale.to(dtype)

    def _noise(self, timestep: torch.Tensor) -> torch.Tensor:
        """The noise in the latents as the UNet sees it, both halves of guidance joined."""
        given = self._conditioning
        if not given.guided:
            return self._predict(self._latents, timestep, slice(None))
        if self.split_guidance:
            without = self._predict(self._latents, timestep, slice(0, 1))
            with_picture = self._predict(self._latents, timestep, slice(1, 2))
        else:
            both = self._predict(torch.cat([self._latents] * 2), timestep, slice(None))
            without, with_picture = both.chunk(2)
        return without + self._guidance_scale * (with_picture - without)

    def _predict(self, latents: torch.Tensor, timestep: torch.Tensor, halves: slice) -> torch.Tensor:
        given = self._conditioning
        scaled = self._scheduler.scale_model_input(latents, timestep)
        noise: torch.Tensor = self._unet(
            torch.cat([scaled, given.image_latents[halves]], dim=2),
            timestep,
            encoder_hidden_states=given.image_embeddings[halves],
            added_time_ids=given.added_time_ids[halves],
            return_dict=False,
        )[0]
        return noise


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
    """Raises NanDetected unless all elements are finite; a NaN would become a black film.

    It waits for the device, which the loops here want: a step is over when it is over on the device.
    """
    if not bool(torch.isfinite(tensor).all()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise NanDetected(
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
    # torch's own method: that of diffusers warns, at every call, of parts to be kept in FP32 when there are none.
    torch.nn.Module.to(vae, torch.float32)
    try:
        yield
    finally:
        torch.nn.Module.to(vae, torch.float16)
