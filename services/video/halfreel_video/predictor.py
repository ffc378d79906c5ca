"""The noise in one clip's latents as one UNet sees it, with what the clip's steps have in common on its device.

Knows nothing of schedulers, guidance or other devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halfreel_video.lean_unet import Kept
from halfreel_video.trades import REUSE_FEATURES


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

    def to(self, target: torch.dtype | torch.device) -> Conditioning:
        """The same in another arithmetic, or on another device."""
        return Conditioning(
            self.image_embeddings.to(target), self.image_latents.to(target), self.added_time_ids.to(target), self.guided
        )


class Predictor:
    """One UNet at work on one clip."""

    def __init__(self, unet: Any, conditioning: Conditioning, trades: Sequence[str]) -> None:
        """Takes a lean UNet, and a conditioning that is on its device."""
        self._unet = unet
        self._conditioning = conditioning
        self._trades = tuple(trades)
        self._kept: dict[str, Kept] = {}

    def predict(self, scaled: torch.Tensor, timestep: torch.Tensor, halves: slice, index: int) -> torch.Tensor:
        """The noise in scaled latents, for some halves of guidance, at the step of an index."""
        given = self._conditioning
        kept = self._kept.setdefault(str(halves), Kept(keeps_deep=REUSE_FEATURES.name in self._trades))
        # Of the step before alone: where guidance begins or ends, these halves may not have run for long.
        reuse = REUSE_FEATURES.reuses(self._trades, index) and kept.deep_index == index - 1
        noise: torch.Tensor = self._unet(
            torch.cat([scaled, given.image_latents[halves]], dim=2),
            timestep,
            encoder_hidden_states=given.image_embeddings[halves],
            added_time_ids=given.added_time_ids[halves],
            return_dict=False,
            kept=kept,
            reuse_deep=reuse,
        )[0]
        if not reuse:
            kept.deep_index = index
        return noise
