"""A Wan text-to-video model, step by step: read words, denoise latents, decode frames.

The arithmetic and its order are those of diffusers' WanPipeline.__call__ (0.42), so that in FP32 the frames equal that
pipeline's bit by bit; only the loops are ours, to stop, report and check between any two steps and any four frames. In
BF16 all of the transformer is in it; diffusers' own loading keeps norms and the embeddings of time and place in FP32.
Knows nothing of requests in a queue, memory or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray

from halfreel_video.clip import ClipRequest
from halfreel_video.svd import check_finite, to_rgb
from halfreel_video.trades import PARTIAL_GUIDANCE

# Words beyond are not seen; as diffusers' own default, which the published models were trained with.
MAX_TEXT_TOKEN_COUNT = 512


@dataclass(frozen=True)
class Words:
    """What a clip is made from: embeddings of the prompt, and with guidance of nothing, of (1, tokens, embedding)."""

    prompt: torch.Tensor
    nothing: torch.Tensor | None


def rendered_frame_count(pipeline: Any, frame_count: int) -> int:
    """The frames that the model renders for a clip: the next number that is a multiple of 4, and 1."""
    scale = int(pipeline.vae_scale_factor_temporal)
    return -(-(frame_count - 1) // scale) * scale + 1


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
def read_words(pipeline: Any, clip: ClipRequest, token_count: int = MAX_TEXT_TOKEN_COUNT) -> Words:
    """Reads the prompt with the text encoder, which must be on the device."""
    guided = clip.guidance_scale > 1
    prompt, nothing = pipeline.encode_prompt(
        clip.prompt,
        do_classifier_free_guidance=guided,
        max_sequence_length=token_count,
        device=next(pipeline.transformer.parameters()).device,
    )
    dtype = pipeline.transformer.dtype
    return Words(prompt.to(dtype), nothing.to(dtype) if guided else None)


class WanDenoising:
    """The latents of one clip on their way out of the noise, with a scheduler of their own."""

    def __init__(self, pipeline: Any, words: Words, clip: ClipRequest, generator: torch.Generator) -> None:
        """Draws the noise.

        Args:
            pipeline: the WanPipeline.
            words: what `read_words` gave.
            clip: the request; its size, step count, guidance scale and trades are used.
            generator: decides the clip.
        """
        self._pipeline, self._transformer = pipeline, pipeline.transformer
        self._words, self._clip = words, clip
        self._scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        device = words.prompt.device
        self._scheduler.set_timesteps(clip.step_count, device=device)
        self._scheduler.set_begin_index(0)  # else it asks the device where it is
        frame_count = rendered_frame_count(pipeline, clip.frame_count)
        side = pipeline.vae_scale_factor_spatial
        size = (
            1,
            self._transformer.config.in_channels,
            (frame_count - 1) // pipeline.vae_scale_factor_temporal + 1,
            clip.height_px // side,
            clip.width_px // side,
        )
        self._latents = randn_tensor(size, generator=generator, device=device, dtype=torch.float32)
        self._index = 0

    @property
    def step_count(self) -> int:
        """Steps from first to last."""
        return len(self._scheduler.timesteps)

    @property
    def latents(self) -> torch.Tensor:
        """The latents after the steps done, of shape (1, 16, latent frames, height / 8, width / 8), in FP32."""
        return self._latents

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
    def step(self) -> torch.Tensor:
        """Does one step, waits for the device, and returns the middle frame's clean latents as predicted now.

        A step that fails changes nothing, and can be done again.

        Returns:
            Latents of shape (16, height / 8, width / 8), on the host.

        Raises:
            NanDetected: the latents would be no numbers any more.
        """
        timestep = self._scheduler.timesteps[self._index]
        where = f"denoising step {self._index + 1}"
        noise = self._noise(timestep)
        check_finite(noise, where)
        # A multistep scheduler remembers the steps before; what it remembers is replaced, never written into.
        before = {
            name: list(value) if isinstance(value, list) else value for name, value in vars(self._scheduler).items()
        }
        sigma = self._scheduler.sigmas[self._index]
        try:
            after = self._scheduler.step(noise, timestep, self._latents, return_dict=False)[0]
            check_finite(after, where)
        except BaseException:
            vars(self._scheduler).update(before)
            raise
        middle = self._latents.shape[2] // 2
        clean = self._latents[0, :, middle] - sigma * noise[0, :, middle].float()
        self._latents = after
        self._index += 1
        return clean.cpu()

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Goes on in another arithmetic, to which the transformer has been switched."""
        words = self._words
        self._words = Words(words.prompt.to(dtype), words.nothing.to(dtype) if words.nothing is not None else None)

    def _noise(self, timestep: torch.Tensor) -> torch.Tensor:
        noise = self._predict(timestep, self._words.prompt)
        rests = PARTIAL_GUIDANCE.rests(self._clip.trades, self._index, self.step_count)
        if self._words.nothing is None or rests:
            return noise
        without = self._predict(timestep, self._words.nothing)
        return without + self._clip.guidance_scale * (noise - without)

    def _predict(self, timestep: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        noise: torch.Tensor = self._transformer(
            hidden_states=self._latents.to(words.dtype),
            timestep=timestep.expand(1),
            encoder_hidden_states=words,
            return_dict=False,
        )[0]
        return noise


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
def decode(pipeline: Any, latents: torch.Tensor) -> Iterator[NDArray[np.uint8]]:
    """Decodes latents, one latent frame at a time, as the VAE itself does, which remembers those before.

    Args:
        pipeline: the WanPipeline.
        latents: of shape (1, 16, latent frames, height / 8, width / 8).

    Yields:
        RGB frames of shape (1 at first, then 4, height, width, 3).

    Raises:
        NanDetected: the frames are no numbers.
    """
    vae = pipeline.vae
    mean, deviation = _spread(vae, latents.device)
    scaled = latents.to(vae.device, vae.dtype) / (1.0 / deviation) + mean
    vae.clear_cache()
    try:
        hidden = vae.post_quant_conv(scaled)
        for index in range(hidden.shape[2]):
            vae._conv_idx = [0]
            first = {"first_chunk": True} if index == 0 else {}
            frames = vae.decoder(
                hidden[:, :, index : index + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **first
            )
            check_finite(frames, "decoding")
            yield to_rgb(frames[0].clamp(-1.0, 1.0).permute(1, 0, 2, 3))
    finally:
        vae.clear_cache()


def picture_latents(pipeline: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encodes pictures of shape (1, 3, height, width), in [-1, 1], to latents as a clip has them."""
    vae = pipeline.vae
    mean, deviation = _spread(vae, vae.device)
    latents: torch.Tensor = vae.encode(pixels[:, :, None].to(vae.device, vae.dtype)).latent_dist.mode()
    return ((latents - mean) / deviation)[:, :, 0]


def _spread(vae: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents, by channel."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean, deviation = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return mean.view(shape).to(device, vae.dtype), deviation.view(shape).to(device, vae.dtype)
