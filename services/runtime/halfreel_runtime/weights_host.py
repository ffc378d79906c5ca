"""The weights of torch modules, off the device and back: the one way in which a model of ours sleeps.

Every tensor stays the object that it is. What leaves is the memory behind it, once for all tensors that share it
(tied weights, views), so that whoever holds one of them need not know. Addresses on the device change: an owner of CUDA
graphs drops them before and captures anew after.

It does not know what the modules compute, nor when they sleep.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from halfreel_runtime.host_arena import HostArena, PinError

_logger = logging.getLogger(__name__)

# Stretches of the arena begin at whole pages, as copies by the device like it.
_ALIGN_BYTES = 4096


def _nothing() -> None:
    pass


@dataclass(eq=False)
class _Block:
    """One piece of the device's memory, and every tensor of the modules that lies in it."""

    storage: torch.UntypedStorage
    size_bytes: int
    offset_bytes: int = 0
    tensors: list[Tensor] = field(default_factory=list)
    scratch: bool = False  # whether what it holds need not come back
    # How each tensor lies in the block, where the block itself can't shrink and its tensors must let go of it.
    places: list[tuple[int, torch.Size, tuple[int, ...]]] | None = None

    def free(self) -> None:
        """Gives the memory back; the tensors stay, empty-handed."""
        if self.storage.resizable():
            self.storage.resize_(0)
            return
        self.places = [(each.storage_offset(), each.size(), each.stride()) for each in self.tensors]
        for each in self.tensors:
            each.data = torch.empty(0, dtype=each.dtype, device=each.device)
        self.storage = torch.UntypedStorage(0, device=self.storage.device)

    def take_memory(self) -> None:
        """Memory again, of any content."""
        self.storage.resize_(self.size_bytes)
        if self.places is not None:
            for each, (offset, size, stride) in zip(self.tensors, self.places, strict=True):
                each.data = torch.empty(0, dtype=each.dtype, device=each.device).set_(
                    self.storage, offset, size, stride
                )
            self.places = None

    def raw(self) -> Tensor:
        """All of the block as bytes."""
        return torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(
            self.storage, 0, (self.size_bytes,), (1,)
        )


class HostedWeights:
    """A `SleepingModel` of torch modules.

    Where the weights go: into pinned memory of the host (measured: 11.7 GiB in 0.23 s, and back in 0.25 s). Where that
    has no room for them, they are dropped, and read anew by `reload`; without it, into a file. Off a GPU always into
    a file.

    Args:
        modules: whose parameters and buffers leave; those that are elsewhere than on the device stay there.
        device: the device they leave.
        tensors: more of them, that belong to no module.
        scratch: tensors of the device whose content need not survive, such as a cache: their memory is given back, and
            they are zeros when it returns.
        reload: reads the same modules anew onto the device, the same parameters and buffers in the same order; for a
            host with too little memory.
        on_sleep: called before the weights leave, to drop what holds their addresses or memory of its own, such as
            CUDA graphs and caches.
        on_woken: called once they are back, to build that anew.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        device: torch.device,
        *,
        tensors: Sequence[Tensor] = (),
        scratch: Sequence[Tensor] = (),
        reload: Callable[[], Sequence[nn.Module]] | None = None,
        on_sleep: Callable[[], None] = _nothing,
        on_woken: Callable[[], None] = _nothing,
    ) -> None:
        self._modules = list(modules)
        self._tensors = list(tensors)
        self._scratch = list(scratch)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if reload is not None and tensors:
            raise ValueError("tensors that belong to no module can't be read anew")
        self._device = device
        self._reload = reload
        self._on_sleep = on_sleep
        self._on_woken = on_woken
        self._arena: HostArena | None = None
        self._pinning: threading.Thread | None = None
        self._pin_refused = ""
        self._blocks: list[_Block] = []  # of the sleeping model; empty while it is awake
        self._shapes: list[tuple[torch.dtype, tuple[int, ...]]] = []  # of all tensors, before they slept
        blocks = self._find_blocks()
        self._weight_bytes = sum(block.size_bytes for block in blocks)
        self._kept_bytes = _lay_out(blocks)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the device behind the weights and the scratch, shared ones once."""
        return self._weight_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of the host that are kept for the weights."""
        return self._arena.size_bytes if self._arena is not None else 0

    @property
    def place(self) -> str:
        """Where the weights go or went: "pinned", "reload" or "file"; empty before the first sleep is prepared."""
        if self._arena is not None:
            return "pinned" if self._arena.pinned else "file"
        return "reload" if self._blocks or self._pin_refused else ""

    def prepare_sleep(self) -> None:
        """Pins the memory in a thread of its own, which takes seconds (5.3 s for 11.7 GiB by one core)."""
        if self._arena is None and self._pinning is None and self._device.type == "cuda":
            self._pinning = threading.Thread(target=self._pin, args=(self._kept_bytes,), name="pinning", daemon=True)
            self._pinning.start()

    def sleep(self) -> None:
        """Takes the weights off the device; the second time changes nothing.

        Raises:
            OSError: no file can take them; the model is awake.
        """
        if self._blocks:
            return
        blocks = self._find_blocks()
        arena = self._arena_for(_lay_out(blocks))
        self._shapes = [_shape(each) for each in _leaves(self._modules)]
        self._on_sleep()
        try:
            if arena is not None:
                self._copy_out(blocks, arena)
            self._wait()
        except BaseException:
            self._on_woken()
            raise
        self._free(blocks)

    def wake(self) -> None:
        """Brings the weights back; the second time changes nothing.

        Raises:
            Exception: the device has no room for them, or they can't be read anew; the model still sleeps.
        """
        blocks = self._blocks
        if not blocks:
            return
        try:
            if self._arena is not None:
                self._copy_in(blocks, self._arena)
            else:
                blocks = self._read_anew(blocks)
            self._on_woken()
        except BaseException:
            with contextlib.suppress(Exception):  # whatever it has built of its own must go as well
                self._on_sleep()
            self._free(blocks)
            raise
        self._blocks = []

    def close(self) -> None:
        """Gives the host's memory back; call it while the model is awake."""
        if self._pinning is not None:
            self._pinning.join()
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    # Leaving and coming back.

    def _free(self, blocks: list[_Block]) -> None:
        for block in blocks:
            if block.places is None:
                block.free()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self._arena is not None:
            self._arena.rest()
        self._blocks = blocks

    def _copy_out(self, blocks: list[_Block], arena: HostArena) -> None:
        for block in (each for each in blocks if not each.scratch):
            raw = block.raw()
            for begin, piece in arena.pieces(block.offset_bytes, block.size_bytes):
                piece.copy_(raw[begin : begin + piece.numel()], non_blocking=arena.pinned)

    def _copy_in(self, blocks: list[_Block], arena: HostArena) -> None:
        for block in blocks:
            block.take_memory()
            raw = block.raw()
            if block.scratch:
                raw.zero_()
                continue
            for begin, piece in arena.pieces(block.offset_bytes, block.size_bytes):
                raw[begin : begin + piece.numel()].copy_(piece, non_blocking=arena.pinned)
        self._wait()
        arena.rest()

    def _read_anew(self, blocks: list[_Block]) -> list[_Block]:
        """Drops what the tensors were and takes what is read; returns the blocks that they lie in now."""
        assert self._reload is not None
        for block in (each for each in blocks if each.scratch):
            block.take_memory()
            block.raw().zero_()
        asleep = {id(tensor) for block in blocks for tensor in block.tensors if not block.scratch}
        fresh = list(_leaves(self._reload()))
        if [_shape(each) for each in fresh] != self._shapes:
            raise RuntimeError("the model that was read anew is not the one that was read before")
        for tensor, new in zip(_leaves(self._modules), fresh, strict=True):
            if id(tensor) in asleep:
                tensor.data = new.data
        return self._find_blocks()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    # Where they go.

    def _arena_for(self, size: int) -> HostArena | None:
        """Room for so many bytes; None where they are dropped instead."""
        if self._pinning is not None:
            self._pinning.join()
            self._pinning = None
        if self._arena is not None and self._arena.size_bytes < size:  # there is more on the device than before
            self.close()
        if self._arena is None and self._device.type == "cuda":
            self._pin(size)
        if self._arena is None and self._reload is None:
            self._arena = HostArena(size, pinned=False)
        return self._arena

    def _pin(self, size: int) -> None:
        """Pins memory, or keeps the reason why not."""
        self._pin_refused = ""
        try:
            self._arena = HostArena(size, pinned=True)
        except PinError as error:
            self._pin_refused = str(error)
            _logger.warning("weights_not_pinned", extra={"reason": self._pin_refused})

    def _find_blocks(self) -> list[_Block]:
        blocks: dict[int, _Block] = {}
        kept = [(tensor, False) for tensor in _leaves(self._modules, self._tensors)]
        for tensor, scratch in [*kept, *((tensor, True) for tensor in _leaves((), self._scratch))]:
            if tensor.device != self._device or tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            if storage.nbytes() == 0:
                continue
            block = blocks.setdefault(storage.data_ptr(), _Block(storage, storage.nbytes(), scratch=scratch))
            block.tensors.append(tensor)
        return list(blocks.values())


def _lay_out(blocks: list[_Block]) -> int:
    """Gives every block that is kept its place in an arena; returns how large that must be."""
    size = 0
    for block in (each for each in blocks if not each.scratch):
        block.offset_bytes = size
        size += -(-block.size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
    return size


def _leaves(modules: Iterable[nn.Module], tensors: Iterable[Tensor] = ()) -> Iterator[Tensor]:
    """The plain tensors of modules, each once: a quantised weight is a tensor made of several."""
    seen: set[int] = set()
    for module in modules:
        for tensor in [*module.parameters(), *module.buffers()]:
            yield from _plain(tensor, seen)
    for tensor in tensors:
        yield from _plain(tensor, seen)


def _plain(tensor: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(tensor) in seen:
        return
    seen.add(id(tensor))
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _plain(getattr(tensor, name), seen)
    else:
        yield tensor


def _shape(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)
