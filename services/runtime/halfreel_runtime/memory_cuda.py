"""The memory of one GPU: torch's allocator for this process, NVML for the device.

It reads counters only, and never waits for the GPU. It does not know what the memory is used for.
"""

from __future__ import annotations

import gc

import torch

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime import nvml
from halfreel_runtime.device import Device
from halfreel_runtime.memory_source import Bytes

# A CUDA context with all its kernels took 0.5 to 0.6 GiB on an H100 and an H200. Where the whole device has more than
# this in use beyond what is ours, another process has come since the start.
_LARGEST_CONTEXT_BYTES = 2 * 2**30


class CudaMemorySource:
    """Allocator and driver figures of one GPU.

    Args:
        device: the GPU, found before the process first used it.
    """

    def __init__(self, device: Device) -> None:
        self._index = device.index
        self._total = int(torch.cuda.get_device_properties(device.index).total_memory)
        self._gpu = nvml.Gpu(device.gpu_uuid)
        self._used_at_start = device.used_at_start_bytes
        self._context = 0

    def live(self) -> Bytes:
        """The allocator's bytes at this moment."""
        return self._read("current")

    def held(self) -> int:
        """What NVML counts: for this process, or for all where it does not find this one."""
        used = self._gpu.process_used_bytes()
        if used is None and (memory := self._gpu.memory()) is not None:
            used = memory.used
        return used if used is not None else self.live().reserved

    def window_peak(self) -> Bytes:
        """The allocator's largest bytes since the window began."""
        return self._read("peak")

    def reset_window(self) -> None:
        """Begins a new window."""
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(self._index)

    def watch(self, on: bool) -> None:
        """Nothing: the allocator keeps its peaks itself."""

    def observe(self) -> None:
        """Measures the context: what the driver counts for this process beyond the allocator's bytes.

        The driver names processes by the host's ids, so that a process in a container seldom finds its own; then
        it is what the device has in use beyond what it had at the start. The largest ever seen is kept, since kernels
        are loaded as they are first used.
        """
        used = self._gpu.process_used_bytes()
        if used is not None:
            self._context = max(self._context, used - self.live().reserved)
        elif (memory := self._gpu.memory()) is not None:
            beyond = memory.used - self._used_at_start - self.live().reserved
            if beyond <= _LARGEST_CONTEXT_BYTES:
                self._context = max(self._context, beyond)

    def fill(self, device: gpu_pb2.DeviceMemory) -> None:
        """The driver's figures; used and free are 0 where the driver can't be asked."""
        device.device_total_bytes = self._total
        device.context_bytes = self._context
        if (memory := self._gpu.memory()) is not None:
            device.device_total_bytes = memory.total
            device.device_used_bytes = memory.used
            device.device_free_bytes = memory.free

    def release_cached(self) -> None:
        """Gives the allocator's unused blocks back to the driver."""
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _read(self, which: str) -> Bytes:
        # The nested form is one call into the allocator; memory_stats() would flatten and sort 100 names each time.
        stats = torch.cuda.memory_stats_as_nested_dict(self._index)
        if not stats:  # CUDA is not in use yet
            return Bytes()
        return Bytes(stats["allocated_bytes"]["all"][which], stats["reserved_bytes"]["all"][which])
