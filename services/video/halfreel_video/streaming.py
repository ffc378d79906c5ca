"""Weights that pass through the device ahead of their use: a ring of a few buffers, filled by a stream of its own.

Denoising is bound by arithmetic: the 2.84 GiB of SVD-XT's UNet cross the bus in 56 ms, one half of a step takes 335 ms.
So a copy is done before its block begins, nearly always. Knows nothing of what the blocks compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from halfreel_video.architecture import SLOT_COUNT
from halfreel_video.weights import FlatWeights


class WeightStream:
    """Runs modules whose weights are at home, each from the ring's slot that its weights were copied to."""

    def __init__(self, modules: Sequence[Any], weights: Sequence[FlatWeights], device: torch.device) -> None:
        """Starts to stream.

        Args:
            modules: in the order in which they run; a run in another order is right too, only slower.
            weights: of each of them, kept at home and parked.
            device: where the modules run.
        """
        self._weights = weights
        self._cuda = device.type == "cuda"
        count = min(SLOT_COUNT, len(modules))
        # As large as the largest module that uses it, no larger.
        sizes = [max(each.size_bytes for each in weights[slot::count]) for slot in range(count)]
        self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
        self._holds: list[int | None] = [None] * count
        self._copies = torch.cuda.Stream(device) if self._cuda else None
        if self._copies is not None:  # what is at work yet may still read the memory that the slots were given
            self._copies.wait_stream(torch.cuda.current_stream(device))
        self._copied = [torch.cuda.Event() for _ in range(count)] if self._cuda else []
        self._used = [torch.cuda.Event() for _ in range(count)] if self._cuda else []
        for index, each in enumerate(weights):
            each.point_to(self._slots[index % count][: each.size_bytes])
        self._hooks = []
        for index, module in enumerate(modules):
            self._hooks.append(module.register_forward_pre_hook(self._before(index)))
            self._hooks.append(module.register_forward_hook(self._after(index)))

    @property
    def size_bytes(self) -> int:
        """Bytes of the ring on the device."""
        return sum(slot.numel() for slot in self._slots)

    def end(self) -> None:
        """Ends streaming: the weights are at home, and the ring's memory is free."""
        for hook in self._hooks:
            hook.remove()
        if self._cuda:
            torch.cuda.synchronize(self._slots[0].device)
        for each in self._weights:
            each.park()
        self._slots = []

    def _before(self, index: int) -> Any:
        def ready(*_: Any) -> None:
            self._fetch(index)
            if self._cuda:
                torch.cuda.current_stream().wait_event(self._copied[index % len(self._slots)])

        return ready

    def _after(self, index: int) -> Any:
        def used(*_: Any) -> None:
            count = len(self._slots)
            if self._cuda:
                self._used[index % count].record()
            # The next module that needs this slot; after the last one, the first of the next run.
            self._fetch(index + count if index + count < len(self._weights) else index % count)

        return used

    def _fetch(self, index: int) -> None:
        """Copies a module's weights to its slot, once what used the slot before has run; returns at once."""
        slot = index % len(self._slots)
        if self._holds[slot] == index:
            return
        weights = self._weights[index]
        with torch.cuda.stream(self._copies) if self._copies is not None else nullcontext():
            if self._copies is not None:
                self._copies.wait_event(self._used[slot])
            weights.copy_to(self._slots[slot][: weights.size_bytes])
            if self._cuda:
                self._copied[slot].record()
        self._holds[slot] = index


def unet_blocks(unet: Any) -> list[Any]:
    """The parts of a UNetSpatioTemporalConditionModel that hold nearly all its weights, in the order they run."""
    blocks: list[Any] = []
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        resnets, attentions = list(block.resnets), list(getattr(block, "attentions", None) or [])
        # The middle begins and ends with a resnet: one more of them than of attentions.
        for index, resnet in enumerate(resnets):
            lag = len(resnets) - len(attentions) if attentions else 0
            if 0 <= index - lag < len(attentions) and lag:
                blocks.append(attentions[index - lag])
            blocks.append(resnet)
            if index < len(attentions) and not lag:
                blocks.append(attentions[index])
        for samplers in ("downsamplers", "upsamplers"):
            blocks += list(getattr(block, samplers, None) or [])
    return blocks
