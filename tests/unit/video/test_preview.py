"""Previews show the colours that latents stand for."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from halfreel_video.preview import LatentColours

SCALING_FACTOR = 0.2


class LinearVae:
    """Latents that are a mix of the mean colours of 8x8 pixels: what a trained VAE's latents are, roughly."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(scaling_factor=SCALING_FACTOR, force_upcast=True)
    mix = torch.tensor([[1.0, 2.0, 0.5], [-3.0, 1.0, 0.0], [0.3, 0.2, -4.0], [0.0, 0.0, 0.0]])

    def encode(self, pixels: torch.Tensor) -> Any:
        latents = torch.einsum("oc,nchw->nohw", self.mix, torch.nn.functional.avg_pool2d(pixels, 8)) + 0.7
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


def latents_of(vae: Any, *, left: tuple[int, int, int], right: tuple[int, int, int]) -> torch.Tensor:
    pixels = torch.empty(1, 3, 64, 128)
    pixels[..., :64] = torch.tensor(left).reshape(1, 3, 1, 1) / 127.5 - 1
    pixels[..., 64:] = torch.tensor(right).reshape(1, 3, 1, 1) / 127.5 - 1
    return vae.encode(pixels).latent_dist.mode()[0] * SCALING_FACTOR


@pytest.mark.parametrize(("left", "right"), [((230, 40, 40), (40, 60, 220)), ((0, 0, 0), (255, 255, 255))])
def test_latents_are_drawn_in_their_colours(left: tuple[int, int, int], right: tuple[int, int, int]) -> None:
    vae = LinearVae()
    jpeg = LatentColours(SimpleNamespace(vae=vae)).jpeg(latents_of(vae, left=left, right=right))
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (256, 128))
        pixels = np.asarray(picture).astype(int)
    assert np.abs(pixels[40:90, 20:100].mean((0, 1)) - left).max() < 6
    assert np.abs(pixels[40:90, 156:236].mean((0, 1)) - right).max() < 6


def test_a_real_vae_is_fitted_and_draws_numbers(svd: Any) -> None:
    jpeg = LatentColours(svd).jpeg(torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)))
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert np.asarray(picture).std() > 0


def test_the_noisiest_large_preview_keeps_to_its_size(svd: Any) -> None:
    latents = 100 * torch.randn(4, 256, 256, generator=torch.Generator().manual_seed(0))
    assert len(LatentColours(svd).jpeg(latents)) <= 64 * 1024
