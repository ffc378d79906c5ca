"""What a memory monitor needs of the place where the numbers come from.

It does not know any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from halfreel.gpu.v1 import gpu_pb2


@dataclass(frozen=True)
class Bytes:
    """Bytes in live tensors, and bytes held by the allocator, live or cached."""

    allocated: int = 0
    reserved: int = 0

    def max(self, other: Bytes) -> Bytes:
        """The larger of each."""
        return Bytes(max(self.allocated, other.allocated), max(self.reserved, other.reserved))

    def message(self) -> gpu_pb2.MemoryPeak:
        """As the contract has it."""
        return gpu_pb2.MemoryPeak(allocated_bytes=self.allocated, reserved_bytes=self.reserved)


class MemorySource(Protocol):
    """Reads the memory of one device; no method waits for work on it.

    A window is the time since `reset_window` was last called.
    """

    def live(self) -> Bytes:
        """The bytes at this moment."""

    def held(self) -> int:
        """Bytes of the device as the driver counts them, so that giving some back can be checked and not believed.

        This process's where the driver tells processes apart, else all; the allocator's where it can't be asked.
        Only differences mean something.
        """

    def window_peak(self) -> Bytes:
        """The largest bytes of the window."""

    def reset_window(self) -> None:
        """Begins a new window, its peak being the present bytes."""

    def watch(self, on: bool) -> None:
        """Whether work is going on, so that peaks matter."""

    def observe(self) -> None:
        """Reads what only makes sense between two steps of the thread that allocates."""

    def fill(self, device: gpu_pb2.DeviceMemory) -> None:
        """Writes the device-wide figures into a message."""

    def release_cached(self) -> None:
        """Gives cached but unused memory back to the device."""
