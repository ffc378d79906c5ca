"""A simulated process's memory, where a memory monitor expects the device's.

It does not know who allocates.
"""

from __future__ import annotations

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.device import Device
from halfreel_runtime.memory_source import Bytes
from halfreel_runtime.testing.allocator import SimulatedAllocator


def simulated_device(gpu_uuid: str = "GPU-simulated") -> Device:
    """A GPU that torch can't use, for whoever only names it."""
    return Device("cuda", 0, gpu_uuid, "simulated card", "cuda:0")


class SimulatedSource:
    """Reads an allocator and its card.

    Args:
        allocator: of the one process that is looked at.

    Attributes:
        nvml: whether the driver answers; without it, its figures are absent.
    """

    def __init__(self, allocator: SimulatedAllocator) -> None:
        self.allocator = allocator
        self.nvml = True

    def live(self) -> Bytes:
        """The allocator's bytes at this moment."""
        return self.allocator.live

    def held(self) -> int:
        """What the card counts for all."""
        return self.allocator.card.used_bytes if self.nvml else self.allocator.live.reserved

    def window_peak(self) -> Bytes:
        """The allocator's peak."""
        return self.allocator.peak

    def reset_window(self) -> None:
        """Begins a new window."""
        self.allocator.reset_peak()

    def watch(self, on: bool) -> None:
        """Nothing: the allocator keeps its peak itself."""

    def observe(self) -> None:
        """Nothing: the context is known."""

    def fill(self, device: gpu_pb2.DeviceMemory) -> None:
        """The card's figures."""
        card = self.allocator.card
        device.device_total_bytes = card.capacity_bytes
        if self.nvml:
            device.context_bytes = self.allocator.context_bytes
            device.device_used_bytes = card.used_bytes
            device.device_free_bytes = card.free_bytes

    def release_cached(self) -> None:
        """Empties the cache."""
        self.allocator.empty_cache()
