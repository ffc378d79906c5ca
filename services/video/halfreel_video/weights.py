"""The weights of a part of a model: at home in host memory, and on the device only where they are wanted.

They lie in one flat buffer, so that they move in one copy. Knows nothing of what a part computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from halfreel_runtime.host_arena import HostArena

_ALIGNMENT = 256  # of each tensor within the buffer, as the device's own allocator has it


@dataclass(frozen=True)
class _Place:
    """Where one tensor lies in the buffer, and which it is: by its name in a module, for a buffer may be replaced."""

    module: Any
    name: str
    start: int
    length: int
    shape: torch.Size
    dtype: torch.dtype

    def tensor(self) -> torch.Tensor:
        tensor: torch.Tensor = getattr(self.module, self.name)
        return tensor

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[self.start : self.start + self.length].view(self.dtype).view(self.shape)


class FlatWeights:
    """All parameters and buffers of some modules."""

    def __init__(self, modules: Iterable[Any], *, without: Iterable[Any] = ()) -> None:
        """Takes note of the tensors; nothing moves.

        Args:
            modules: whose tensors these are, with all their parts.
            without: parts of them whose tensors these are not.
        """
        self._places: list[_Place] = []
        self.size_bytes = 0
        seen: set[int] = set()
        others = {part for module in without for part in module.modules()}
        for owner in (part for module in modules for part in module.modules() if part not in others):
            for name, tensor in [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]:
                if id(tensor) in seen or not tensor.numel():
                    continue
                seen.add(id(tensor))
                length = tensor.numel() * tensor.element_size()
                self._places.append(_Place(owner, name, self.size_bytes, length, tensor.shape, tensor.dtype))
                self.size_bytes += -(-length // _ALIGNMENT) * _ALIGNMENT
        self._arena: HostArena | None = None  # the locked memory behind `_host`
        self._host: torch.Tensor | None = None
        self._device: torch.Tensor | None = None

    @property
    def kept(self) -> bool:
        """Whether there is a copy at home."""
        return self._host is not None

    def keep(self, *, pinned: bool) -> None:
        """Makes the copy at home, once, from wherever the weights are; pinned memory moves at the bus's speed.

        Raises:
            PinError: the system pins no more memory; the weights are where they were.
        """
        if self._host is not None:
            return
        if not pinned:
            host = torch.empty(self.size_bytes, dtype=torch.uint8)
            for place in self._places:
                place.view(host).copy_(place.tensor().data)
            self._host = host
            return
        arena = HostArena(self.size_bytes, pinned=True)
        try:
            for place in self._places:
                raw = place.tensor().data.contiguous().view(-1).view(torch.uint8)
                # A copy that crosses from one locked stretch to the next is refused by the driver.
                for start, piece in arena.pieces(place.start, place.length):
                    piece.copy_(raw[start : start + len(piece)])
        except BaseException:
            arena.close()
            raise
        _, piece = next(arena.pieces(0, self.size_bytes))
        self._host = piece.new_empty(0).set_(piece.untyped_storage(), 0, (self.size_bytes,), (1,))
        self._arena = arena

    def copy_to(self, buffer: torch.Tensor) -> None:
        """Copies the weights from home to a buffer of their size, on the present stream; returns at once if pinned."""
        if self._arena is None:
            buffer.copy_(self._home)
            return
        for start, piece in self._arena.pieces(0, self.size_bytes):
            buffer[start : start + len(piece)].copy_(piece, non_blocking=True)

    def load(self, device: torch.device) -> None:
        """Brings the weights to the device from home, as they were there, whatever became of them meanwhile."""
        if self._device is None:
            buffer = torch.empty(self.size_bytes, dtype=torch.uint8, device=device)
            self.copy_to(buffer)
            self._device = buffer
        self.point_to(self._device)

    def gather(self, device: torch.device) -> None:
        """Has the weights, which are on the device, in one piece there: nothing is scattered among other tensors.

        Raises:
            torch.OutOfMemoryError: there is no room for them twice, even part by part; they are where they were.
        """
        buffer = torch.empty(self.size_bytes, dtype=torch.uint8, device=device)
        for place in self._places:
            place.view(buffer).copy_(place.tensor().data)
        self._device = buffer
        self.point_to(buffer)

    def park(self) -> None:
        """Leaves the device: from now on the modules' tensors are those at home."""
        self.point_to(self._home)
        self._device = None

    def point_to(self, buffer: torch.Tensor) -> None:
        """Makes the modules' tensors parts of a buffer that holds, or will hold, a copy of these weights."""
        for place in self._places:
            if place.name in place.module._buffers:
                place.module._buffers[place.name] = place.view(buffer)
            else:
                place.tensor().data = place.view(buffer)

    @property
    def _home(self) -> torch.Tensor:
        assert self._host is not None
        return self._host
