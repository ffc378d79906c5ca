"""Keeps a server's process within its budget: torch's allocator refuses what would go over it.

It does not know plans: a request that was planned well never meets this limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.budget import Budget, parse_budget, parse_bytes
from halfreel_runtime.device import Device
from halfreel_runtime.plan import Room
from halfreel_runtime.server_settings import ModelServerSettings

# What the driver keeps beside the allocator before it is measured: CUDA context, kernels, cuBLAS and cuDNN handles.
# An H100 and an H200 took 0.5 to 0.6 GiB for a video model.
CONTEXT_BYTES = 600 * 2**20


@dataclass(frozen=True)
class MemoryLimit:
    """What a server may take of its device.

    Attributes:
        device: the one that it is about.
        total_bytes: bytes of the device; of the host, on a CPU.
        budget_bytes: hard budget, allocator and context together; 0 for none.
        min_free_bytes: bytes that must stay free for others.
    """

    device: Device
    total_bytes: int
    budget_bytes: int
    min_free_bytes: int

    @classmethod
    def of(cls, settings: ModelServerSettings, device: Device) -> MemoryLimit:
        """Reads the settings for a device.

        Raises:
            FailedPrecondition: BUDGET_TOO_LARGE.
        """
        total = _total_bytes(device)
        budget: Budget = parse_budget(settings.memory_budget)
        return cls(device, total, budget.of(total), parse_bytes(settings.min_free_memory))

    def enforce(self, context_bytes: int = CONTEXT_BYTES) -> None:
        """Makes torch's allocator refuse what would go over the budget; on a CPU nothing can.

        Call it before the model is loaded, and again once the context has been measured.

        Args:
            context_bytes: what the driver keeps for the process beside the allocator.
        """
        if self.device.kind != "cuda" or not self.budget_bytes:
            return
        import torch

        part = max(0, self.budget_bytes - context_bytes) / self.total_bytes
        torch.cuda.set_per_process_memory_fraction(min(1.0, part), self.device.index)

    def allocator_bytes(self, report: gpu_pb2.MemoryReport, context_bytes: int = CONTEXT_BYTES) -> int:
        """What of the device there is for the model's own bytes now; on a CPU, no less than all.

        Args:
            report: the memory as it is.
            context_bytes: what the driver keeps for the process beside the allocator.
        """
        if self.device.kind == "cpu":
            return self.total_bytes
        return max(0, self.room(report.devices[0].other_processes_bytes).available_bytes - context_bytes)

    def room(self, other_bytes: int, sleeping_bytes: int = 0) -> Room:
        """What is there for a plan.

        Args:
            other_bytes: what other processes hold on the device.
            sleeping_bytes: of these, what servers would give back that can be asked to sleep.
        """
        return Room(self.total_bytes, other_bytes, sleeping_bytes, self.budget_bytes, self.min_free_bytes)


def _total_bytes(device: Device) -> int:
    if device.kind == "cpu":
        return int(psutil.virtual_memory().total)
    import torch

    return int(torch.cuda.get_device_properties(device.index).total_memory)
