"""Where the parts of both models are, and how they compute: what a clip's levers say, done.

Used by the engine's thread alone. Knows nothing of clips, nor of what a lever saves.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from halfreel_runtime.failures import release_frames
from halfreel_runtime.host_arena import PinError
from halfreel_video.attention import Attention
from halfreel_video.feed_forward import FeedForwardChunks
from halfreel_video.fused import kernels_for
from halfreel_video.fused_blocks import FusedBlocks
from halfreel_video.levers import SDPA, Levers
from halfreel_video.replica import Replica
from halfreel_video.shortage import is_shortage
from halfreel_video.streaming import WeightStream, unet_blocks
from halfreel_video.weights import FlatWeights

KEYFRAME, IMAGE_ENCODER, VAE, UNET = "keyframe", "image_encoder", "vae", "unet"
_logger = logging.getLogger(__name__)


class Layout:
    """Both models on one device, laid out as the levers of the running clip say."""

    def __init__(
        self,
        svd: Any,
        keyframe: Any,
        device: torch.device,
        dtype: torch.dtype,
        *,
        choose_kernels: bool = False,
        parallel_devices: Sequence[torch.device] = (),
    ) -> None:
        """Takes both pipelines as they were loaded, on the device or, where that has no room for all, on the host.

        With `choose_kernels`, PyTorch's attention kernels are timed, and the fastest used. On each of
        `parallel_devices`, which are of the same make, a replica denoises and decodes beside the device; it is loaded
        by `bring_all`.
        """
        self.device, self.dtype = device, dtype
        self._unet = svd.unet
        self.blocks = unet_blocks(svd.unet)
        block_weights = [FlatWeights([block]) for block in self.blocks]
        keyframe_parts = [part for part in keyframe.components.values() if isinstance(part, torch.nn.Module)]
        self._weights = {
            KEYFRAME: [FlatWeights([part]) for part in keyframe_parts],
            IMAGE_ENCODER: [FlatWeights([svd.image_encoder])],
            VAE: [FlatWeights([svd.vae])],
            UNET: [FlatWeights([svd.unet], without=self.blocks), *block_weights],
        }
        self._modules = {
            KEYFRAME: keyframe_parts,
            IMAGE_ENCODER: [svd.image_encoder],
            VAE: [svd.vae],
            UNET: [svd.unet],
        }
        self._here = {
            name: next(parts[0].parameters()).device.type == device.type for name, parts in self._modules.items()
        }
        if device.type == "cuda":
            self._gather()
        self._stream: WeightStream | None = None
        self._feed_forward = FeedForwardChunks(svd.unet)
        self.attention = Attention(svd.unet, device, dtype, choose_kernels=choose_kernels)
        self.fused = FusedBlocks(svd, lambda: kernels_for(device))
        self.replicas = [Replica(svd, each, self.attention.kernels) for each in parallel_devices]
        self._with_replicas = False
        self._levers = Levers()
        self._no_room = False  # for what idles off the device, at the last try
        self.changed: set[str] = set()  # parts in another arithmetic than they were loaded in

    def _gather(self) -> None:
        """Moves each part that is on the device to one piece of its memory.

        As they were loaded, thousands of tensors lie between holes that large tensors don't fit: decoding 8 frames then
        held 20.0 GiB on an H100, and 17.7 where the weights were in one piece.
        """
        for name, here in self._here.items():
            for weights in self._weights[name] if here else ():
                try:
                    weights.gather(self.device)
                except torch.OutOfMemoryError:  # on a small card there is no room for a part twice: it stays as it lies
                    self.release_cached()
        self.release_cached()

    @property
    def levers(self) -> Levers:
        """As the running clip has them."""
        return self._levers

    def arrange(self, levers: Levers) -> Levers:
        """Lays everything out for a clip: `take`, and `bring_all`."""
        had = self.take(levers)
        self.bring_all()
        return had

    def take(self, levers: Levers) -> Levers:
        """Has the next work done as levers say; brings nothing to the device, so that it can't fail.

        Returns:
            The levers as they could be had: an attention backend that doesn't work here is replaced, and what was not
            tried yet runs as it is.
        """
        backend = self.attention.use(levers.attention_backend)
        self._feed_forward.count = levers.feed_forward_chunk_count
        plain = backend == SDPA and levers.feed_forward_chunk_count == 1
        compiled = self.fused.use(replace(levers, attention_backend=backend).fuses)
        # With replicas the halves of guidance are two runs always, so that bytes don't depend on where they run.
        split = levers.split_guidance or bool(self.replicas)
        self._with_replicas = plain and not (levers.offload_idle_parts or levers.stream_weights)
        self._no_room = False
        self._levers = replace(levers, attention_backend=backend, compiled=compiled, split_guidance=split)
        if not levers.stream_weights:
            self._end_stream()
        return self._levers

    def bring_all(self) -> None:
        """Brings what the levers keep on the device between two clips; nothing, where idle parts are offloaded.

        Raises:
            RuntimeError, torch.OutOfMemoryError: there is no room; the layout is as it can be, and can be asked again.
        """
        if not self._levers.offload_idle_parts:
            for name in self._weights:
                self._bring(name)
            for replica in self.replicas:
                replica.load()

    def parallel(self) -> list[Replica]:
        """The replicas that compute as this device does now; none where weights move or are in another arithmetic."""
        if not self._with_replicas:
            return []
        compiled = self._levers.compiled
        return [each for each in self.replicas if each.usable and each.fused.use(compiled) == compiled]

    def check_next(self) -> bool | None:
        """Tries a piece more of the fused blocks, between two clips; parts that are away are brought, where they fit.

        Returns:
            Whether there is more; None where nothing can be tried before another clip has run.
        """
        if not self.fused.is_pending:
            return False
        if self.changed or self._no_room:
            return None
        levers = self._levers
        self._end_stream()  # the next clip begins another
        self._levers = replace(levers, stream_weights=False)
        away = [name for name in (UNET, VAE) if not self._here[name]]
        try:
            for name in away:
                self._bring(name)
            self.attention.use(SDPA)  # the next clip's levers decide anew
            self._feed_forward.count = 1
            self.fused.check_next()
        except Exception as error:
            if not is_shortage(error):
                raise
            release_frames(error)
            self._no_room = True
        finally:
            self.park(*away)
            self._levers = levers
        return None if self._no_room else self.fused.is_pending

    @property
    def is_short_of_replicas(self) -> bool:
        """Whether the running clip's levers would have it use a replica that can't be used."""
        return self._with_replicas and len(self.parallel()) < len(self.replicas)

    def is_here(self, name: str) -> bool:
        """Whether a part is on the device."""
        return self._here[name]

    def clear_for(self, *names: str) -> None:
        """Takes idle parts off the device, where the levers say so; allocates nothing, so that it can't fail."""
        if self._levers.offload_idle_parts:
            self.park(*(name for name in self._weights if name not in names))
        self.release_cached()

    def use(self, *names: str) -> None:
        """Has some parts on the device: beside all others, or alone where idle parts are offloaded.

        Raises:
            torch.OutOfMemoryError: there is no room; it can be asked again.
        """
        others = any(here for name, here in self._here.items() if name not in names)
        if others and self._levers.offload_idle_parts:
            self.clear_for(*names)
        for name in names:
            self._bring(name)

    def park(self, *names: str) -> None:
        """Takes parts off the device; the weights are kept at home, in pinned memory where there is enough of it."""
        for name in names:
            if name == UNET:
                self._end_stream()
            if self._here[name]:
                for weights in self._weights[name]:
                    self._keep(weights)
                self._go_home(name)
        self.release_cached()

    def park_all(self) -> None:
        """Takes everything off all devices."""
        self.park(*self._weights)
        for replica in self.replicas:
            replica.drop()

    def upcast(self, name: str) -> torch.dtype:
        """Switches a part that is on the device to more precise arithmetic, until `restore`.

        Returns:
            The new arithmetic: FP32 where it fits, else BF16, whose numbers reach as far.

        Raises:
            torch.OutOfMemoryError: not even BF16 fits; the part is at home.
        """
        self.park(name)
        self._with_replicas = False
        self.fused.use(False)  # tried in the arithmetic that the parts were loaded in
        with contextlib.suppress(torch.OutOfMemoryError):
            self._move(name, torch.float32)
            return torch.float32
        self._move(name, torch.bfloat16)
        return torch.bfloat16

    def to_cpu(self, name: str) -> None:
        """Has a part computed by the host in FP32, until `restore`: slow, and it needs nothing of the device."""
        self.park(name)
        self._with_replicas = False
        self.fused.use(False)
        self.changed.add(name)
        for module in self._modules[name]:
            torch.nn.Module.to(module, torch.float32)
        self._here[name] = True  # where it is wanted

    def restore(self) -> None:
        """Undoes `upcast` and `to_cpu`: those parts are at home, with the weights as they were loaded."""
        for name in self.changed:
            self._go_home(name)
        self.changed.clear()

    def _move(self, name: str, dtype: torch.dtype) -> None:
        """Has a part on the device in another arithmetic; all of it or, where that fails, nothing."""
        try:
            for module in self._modules[name]:
                # torch's own method: that of diffusers warns, at every call, of parts to be kept in FP32.
                torch.nn.Module.to(module, self.device, dtype)
        except BaseException:
            self._go_home(name)
            raise
        self._here[name] = True
        self.changed.add(name)

    def _go_home(self, name: str) -> None:
        for weights in self._weights[name]:
            weights.park()
        self._here[name] = False

    def release_cached(self) -> None:
        """Gives memory back that the allocator holds and nobody uses, so that a phase's peak is its own."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def device_bytes(self) -> int:
        """Bytes of weights that are on the device now, the ring of streamed ones included."""
        size = sum(sum(each.size_bytes for each in self._weights[name]) for name in self._weights if self._here[name])
        if self._stream is None:
            return size
        return size - sum(each.size_bytes for each in self._weights[UNET][1:]) + self._stream.size_bytes

    def _bring(self, name: str) -> None:
        """Has a part on the device, as it was loaded; all of it or, where that fails, nothing."""
        # The weights that are streamed are as they were loaded: one that works in another arithmetic stays whole.
        streamed = name == UNET and self._levers.stream_weights and UNET not in self.changed
        if self._here[name] and (not streamed or self._stream is not None):
            return
        if streamed:
            self.park(UNET)
        weights = self._weights[name]
        try:
            for each in weights:
                self._keep(each)
                if streamed:  # also of a model that was never on the device
                    each.park()
                else:
                    each.load(self.device)
            if streamed:
                weights[0].load(self.device)
                self._stream = WeightStream(self.blocks, weights[1:], self.device)
        except BaseException:
            for each in weights:
                if each.kept:
                    each.park()
            raise
        self._here[name] = True

    def _end_stream(self) -> None:
        if self._stream is None:
            return
        self._stream.end()
        self._stream = None
        self._weights[UNET][0].park()
        self._here[UNET] = False
        self.release_cached()

    def _keep(self, weights: FlatWeights) -> None:
        if weights.kept:
            return
        try:
            weights.keep(pinned=self.device.type == "cuda")
        except PinError as error:  # slower, and right
            _logger.warning("not_pinned", extra={"reason": str(error), "size_bytes": weights.size_bytes})
            weights.keep(pinned=False)
