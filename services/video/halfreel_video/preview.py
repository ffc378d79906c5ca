"""Rough pictures of latents without the VAE: one small matrix from latent channels to RGB.

The matrix is fitted to the model's own VAE when it is loaded, by least squares on blocks of random colours, so it
holds for any VAE; a preview costs one tiny product.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from halfreel_video.svd import upcast

_BLOCK_PX = 32  # blocks wide enough that most latent cells see one colour
_GRID = 6  # blocks a side
_SIDE_PX = 256  # of a preview's longer side: about 10 KiB as a JPEG, 64 KiB at the very most


class LatentColours:
    """Maps latents of one VAE to colours."""

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
    def __init__(self, pipeline: Any, encode: Callable[[Any, torch.Tensor], torch.Tensor] | None = None) -> None:
        """Encodes one picture of random colours and fits the map to it.

        Args:
            pipeline: what the VAE belongs to.
            encode: from the pipeline and pixels of (1, 3, height, width), in [-1, 1], to latents as a clip has them;
                None takes a picture's VAE.
        """
        blocks = torch.rand(1, 3, _GRID, _GRID, generator=torch.Generator("cpu").manual_seed(0))
        pixels = blocks.repeat_interleave(_BLOCK_PX, 2).repeat_interleave(_BLOCK_PX, 3)
        latents = (encode or _picture_latents)(pipeline, pixels * 2 - 1).float().cpu()
        colours = torch.nn.functional.adaptive_avg_pool2d(pixels, latents.shape[-2:])
        rows = latents[0].flatten(1).T
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
        # A trace of ridge, since a VAE may leave channels unused.
        square = rows.T @ rows
        square += 1e-6 * square.trace() * torch.eye(len(square))
        self._map = torch.linalg.solve(square, rows.T @ colours[0].flatten(1).T)

    def jpeg(self, latents: torch.Tensor) -> bytes:
        """Draws latents of shape (channels, height, width) as a JPEG of at most 256 pixels a side."""
        rows = latents.float().cpu().permute(1, 2, 0)
        colours = (rows @ self._map[:-1] + self._map[-1]).clamp(0, 1) * 255
        picture = Image.fromarray(colours.round().to(torch.uint8).numpy())
        scale = _SIDE_PX / max(picture.size)
        picture = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC
        )
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        return buffer.getvalue()


def _picture_latents(pipeline: Any, pixels: torch.Tensor) -> torch.Tensor:
    vae = pipeline.vae
    with upcast(vae):
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
    return latents.float() * vae.config.scaling_factor
