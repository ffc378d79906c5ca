"""What the NVIDIA driver tells of a GPU, found by its UUID; nothing, where the driver can't be asked.

No call waits for work on the GPU. It does not know torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import Any

import pynvml

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a whole GPU."""

    total: int
    used: int
    free: int


class Gpu:
    """One GPU. Where NVML is absent, or the GPU is none it knows, one line is logged and every answer is None."""

    def __init__(self, gpu_uuid: str) -> None:
        self._handle: Any = None
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_uuid)
        except pynvml.NVMLError as error:
            _logger.warning("nvml_absent", extra={"reason": str(error), "gpu_uuid": gpu_uuid})

    def memory(self) -> GpuMemory | None:
        """The memory of the GPU, used by whichever process."""
        if self._handle is None:
            return None
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        except pynvml.NVMLError:  # the driver was reloaded, or the GPU fell off its bus: a report goes without it
            return None
        return GpuMemory(int(memory.total), int(memory.used), int(memory.free))

    def process_used_bytes(self) -> int | None:
        """What the driver counts for this process.

        None where it doesn't know the process: it names processes by the host's ids, not by a container's.
        """
        if self._handle is None:
            return None
        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except pynvml.NVMLError:  # not supported on every GPU, nor allowed in every container
            return None
        return next((each.usedGpuMemory for each in processes if each.pid == os.getpid()), None)


def used_bytes() -> dict[str, int]:
    """The bytes in use on every GPU and every part of one (MIG), by UUID; nothing where NVML is absent."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        handles += [part for handle in handles for part in _parts(handle)]
        return {
            pynvml.nvmlDeviceGetUUID(handle): int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles
        }
    except pynvml.NVMLError:
        return {}


def _parts(handle: Any) -> list[Any]:
    """The parts that a GPU is divided into; most are not, and many can't be."""
    parts = []
    try:
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError_NotFound):
                parts.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    except pynvml.NVMLError:
        return []
    return parts
