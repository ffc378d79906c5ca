"""A layout whose parts take memory of a simulated card, as SVD-XT's would, while small ones compute on the CPU.

What moves and what is computed is the product's own code; what it takes of the card is what the estimate says of the
clip that it stands for. Knows no request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from halfreel_runtime.testing.allocator import SimulatedAllocator
from halfreel_video.estimate import Estimate, Shape
from halfreel_video.layout import IMAGE_ENCODER, KEYFRAME, UNET, VAE, Layout
from halfreel_video.levers import Levers
from halfreel_video.weights import FlatWeights


class ChargedLayout(Layout):
    """See `Layout`; nothing is on the card at first.

    Args:
        svd: a small image-to-video pipeline on the CPU, of its own: layouts change how a pipeline computes.
        keyframe: the keyframe pipeline in front of it.
        allocator: of the process on the card.
        estimate: what the large model takes.

    Attributes:
        shape: the clip that the next work stands for; its frames at once are those that are really computed.
        taken_ratio: what of its predicted bytes a piece of work takes, by its phase; asked for each.
    """

    def __init__(self, svd: Any, keyframe: Any, allocator: SimulatedAllocator, estimate: Estimate) -> None:
        super().__init__(svd, keyframe, torch.device("cpu"), torch.float32)
        self.shape = Shape(1024, 576, 25, 1, 25, guided=True, drawn=True)
        self.taken_ratio: Callable[[str], float] = lambda phase: 1.0
        self._allocator, self._estimate = allocator, estimate
        self._ring: int | None = None  # its address
        self._ring_bytes = estimate.architecture.ring_count * estimate.item_bytes // 512 * 512
        self._working: dict[int, int] = {}  # addresses of what runs, by its module
        whole = estimate.architecture
        counts = {
            KEYFRAME: whole.keyframe_count,
            IMAGE_ENCODER: whole.image_encoder_count,
            VAE: whole.vae_count,
            UNET: whole.unet_count,
        }
        for name, count in counts.items():
            self._weights[name] = self._charged(self._weights[name], count * estimate.item_bytes)
            self._here[name] = False
        self._watch("denoise", svd.unet, self._denoise_bytes)
        self._watch("encode", svd.image_encoder, lambda _: self._estimate.image_encode_bytes())
        self._watch("encode", svd.vae.encoder, lambda _: self._estimate.vae_encode_bytes(self.shape))
        self._watch("decode", svd.vae.decoder, self._decode_bytes)
        for part in (keyframe.unet, keyframe.vae.decoder):
            self._watch("keyframe", part, lambda _: self._activation_bytes("keyframe", self.shape, self.levers))

    def release_cached(self) -> None:
        """Empties the simulated allocator's cache."""
        self._allocator.empty_cache()

    def _bring(self, name: str) -> None:
        super()._bring(name)
        if self._stream is not None and self._ring is None:
            try:
                self._ring = self._allocator.allocate(self._ring_bytes)
            except BaseException:
                self._end_stream()
                raise

    def _end_stream(self) -> None:
        super()._end_stream()
        if self._ring is not None:
            self._allocator.free(self._ring)
            self._ring = None

    def held_bytes(self) -> int:
        """What the weights take of the card now, by this layout's own account; more in the allocator is a leak."""
        parts = [each for weights in self._weights.values() for each in weights]
        ring = self._ring_bytes if self._ring is not None else 0
        return ring + sum(each.charged_bytes for each in parts if isinstance(each, _ChargedWeights) and each.is_here)

    # What it takes.

    def _charged(self, parts: list[FlatWeights], size_bytes: int) -> list[FlatWeights]:
        """Weights of so many bytes, in the proportions of the small model's."""
        whole = sum(each.size_bytes for each in parts)
        return [_ChargedWeights(each, self._allocator, size_bytes * each.size_bytes // whole) for each in parts]

    def _denoise_bytes(self, given: tuple[Any, ...]) -> int:
        return self._activation_bytes("denoise", replace(self.shape, frame_count=given[0].shape[1]), self.levers)

    def _decode_bytes(self, given: tuple[Any, ...]) -> int:
        if VAE in self.changed:  # the host decodes
            return 0
        chunk = replace(self.levers, decode_chunk_frame_count=given[0].shape[0])
        return self._activation_bytes("decode", self.shape, chunk)

    def _activation_bytes(self, phase: str, shape: Shape, levers: Levers) -> int:
        return next(each.activation_bytes for each in self._estimate.phases(shape, levers) if each.name == phase)

    def _watch(self, phase: str, module: Any, size_bytes: Callable[[tuple[Any, ...]], int]) -> None:
        """Has a module take memory while it runs."""

        def begin(module: Any, given: tuple[Any, ...]) -> None:
            if size := int(size_bytes(given) * self.taken_ratio(phase)):
                self._working[id(module)] = self._allocator.allocate(size)

        def end(module: Any, *_: Any) -> None:
            if (address := self._working.pop(id(module), None)) is not None:
                self._allocator.free(address)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end, always_call=True)


class _ChargedWeights(FlatWeights):
    """Takes the place of some weights."""

    def __init__(self, weights: FlatWeights, allocator: SimulatedAllocator, charged_bytes: int) -> None:
        vars(self).update(vars(weights))
        self._allocator = allocator
        # A multiple of what the allocator deals in.
        self.charged_bytes = max(512, charged_bytes // 512 * 512)
        self._address: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether they take memory of the card."""
        return self._address is not None

    def load(self, device: torch.device) -> None:
        """See `FlatWeights`; takes memory of the card first."""
        if self._address is None:
            self._address = self._allocator.allocate(self.charged_bytes)
        super().load(device)

    def park(self) -> None:
        """See `FlatWeights`."""
        super().park()
        if self._address is not None:
            self._allocator.free(self._address)
            self._address = None
