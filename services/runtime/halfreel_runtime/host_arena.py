"""Room on the host for the weights of a sleeping model: pinned memory, or a file that nobody else sees.

Pinned memory is what the device copies from and to at the full speed of its bus (51 GB/s on an H200). torch's own
pinned tensors are rounded up to the next power of two, so that 11.7 GiB could take 16; here it is one mapping of the
very size, whose pages are touched by all cores before the driver locks them.

It does not know what it holds.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor

from halfreel_runtime.host_memory import host_memory

# What pinning leaves of the host's memory to everybody else, at least: pinned pages can't be dropped nor swapped.
_HOST_RESERVE_BYTES = 2 * 2**30
# A driver call that locks all at once keeps other threads out of the driver for seconds; a copy never crosses a piece.
PIECE_BYTES = 256 * 2**20


class PinError(Exception):
    """The driver does not lock so much memory, or the host has too little of it; there is no arena."""


class HostArena:
    """Bytes outside of the device.

    Args:
        size_bytes: how many.
        pinned: locked memory, for copies at full speed; needs CUDA. Otherwise a file without a name in the folder for
            temporary files, whose pages the system may drop from memory.

    Raises:
        PinError: the driver does not lock so much, or locking it would leave too little of the host's memory to others.
        OSError: the file can't be as large.
    """

    def __init__(self, size_bytes: int, *, pinned: bool) -> None:
        self.size_bytes = size_bytes
        self.pinned = pinned
        self._locked: list[Tensor] = []
        if pinned:
            self._map = _room_to_pin(size_bytes)
            with contextlib.suppress(AttributeError, OSError):  # fewer, larger pages are locked sooner; only on Linux
                self._map.madvise(mmap.MADV_HUGEPAGE)
        else:
            with tempfile.TemporaryFile(prefix="halfreel-") as file:
                file.truncate(max(size_bytes, 1))
                if hasattr(os, "posix_fallocate"):  # or a full disk would be told by SIGBUS, in the middle of a copy
                    os.posix_fallocate(file.fileno(), 0, max(size_bytes, 1))
                self._map = mmap.mmap(file.fileno(), max(size_bytes, 1))
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        if pinned:
            self._lock()

    def pieces(self, offset_bytes: int, size_bytes: int) -> Iterator[tuple[int, Tensor]]:
        """A stretch of the arena as parts that can each be copied at once: where each begins in the stretch, and it."""
        begin, end = offset_bytes, offset_bytes + size_bytes
        while begin < end:
            stop = min(end, (begin // PIECE_BYTES + 1) * PIECE_BYTES)
            yield begin - offset_bytes, self._bytes[begin:stop]
            begin = stop

    def rest(self) -> None:
        """Nothing is read for a while: a file's pages need not be in this process's memory."""
        if not self.pinned:
            with contextlib.suppress(AttributeError, OSError):  # only on Linux: elsewhere the system finds out itself
                self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Gives the memory back."""
        while self._locked:
            torch.cuda.cudart().cudaHostUnregister(self._locked.pop().data_ptr())
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def _lock(self) -> None:
        runtime = torch.cuda.cudart()
        for _, piece in self.pieces(0, self.size_bytes):
            piece.zero_()  # all cores touch the pages; the driver alone would do it with one
            error = runtime.cudaHostRegister(piece.data_ptr(), piece.numel(), 0)
            if int(error) != 0:
                self.close()
                _forget_refusal()
                raise PinError(f"cudaHostRegister of {piece.numel()} bytes: error {int(error)}")
            self._locked.append(piece)


def _room_to_pin(size_bytes: int) -> mmap.mmap:
    available = host_memory().available_bytes
    if available < size_bytes + _HOST_RESERVE_BYTES:
        raise PinError(
            f"the host has {available} bytes available; pinning {size_bytes} must leave {_HOST_RESERVE_BYTES} of them"
        )
    try:
        return mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise PinError(f"the system maps no {size_bytes} bytes: {error}") from error


def _forget_refusal() -> None:
    """Takes the refusal out of CUDA's last error, where the next library that looks would take it for its own.

    torch offers no cudaGetLastError; any kernel that it launches asks for it.
    """
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
