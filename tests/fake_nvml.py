"""The NVIDIA driver's answers for one GPU, for machines without one; it can lack a sensor, or be lost."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from prometheus_client import CollectorRegistry

from halfreel_runtime.device import Device
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_cpu import CpuMemorySource
from halfreel_runtime.metrics import ServerMetrics

GPU = "GPU-6f1a3c52-2f57-0d2b-7b1e-aa41c0a5b9d0"


# What the driver alone tells; a counter's name is told without _total.
GPU_FIGURES = (
    "halfreel_gpu_energy_joules",
    "halfreel_gpu_power_watts",
    "halfreel_gpu_temperature_celsius",
    "halfreel_gpu_utilization_ratio",
)


class FakeNvml:
    def __init__(self) -> None:
        self.lost = False
        self.lacks: set[str] = set()
        self.answers: dict[str, Callable[[], Any]] = {
            "nvmlDeviceGetUtilizationRates": lambda: SimpleNamespace(gpu=87, memory=40),
            "nvmlDeviceGetPowerUsage": lambda: 651_200,
            "nvmlDeviceGetTemperature": lambda: 61,
            "nvmlDeviceGetTotalEnergyConsumption": lambda: 123_456_789,
        }

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", self._handle)
        for name in self.answers:
            monkeypatch.setattr(pynvml, name, self._question(name))

    def _handle(self, gpu_uuid: str) -> str:
        if self.lost:
            raise pynvml.NVMLError_GpuIsLost()
        assert gpu_uuid == GPU
        return gpu_uuid

    def _question(self, name: str) -> Callable[..., Any]:
        def ask(handle: str, *_: Any) -> Any:
            if self.lost:
                raise pynvml.NVMLError_GpuIsLost()
            if name in self.lacks:
                raise pynvml.NVMLError_NotSupported()
            return self.answers[name]()

        return ask


class GpuLike(CpuMemorySource):
    """A GPU's device-wide figures; None stands for a driver that can't be asked."""

    used: int | None = 40 * 2**30

    def fill(self, device: Any) -> None:
        device.device_total_bytes = 80 * 2**30
        device.context_bytes = 512 * 2**20
        if self.used is not None:
            device.device_used_bytes, device.device_free_bytes = self.used, device.device_total_bytes - self.used


def gpu_registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """What a video server on that GPU shows."""
    FakeNvml().install(monkeypatch)
    return gpu_metrics(GpuLike())


def gpu_metrics(source: GpuLike) -> CollectorRegistry:
    device = Device("cuda", 0, GPU, "NVIDIA H100 80GB HBM3", "cuda:0")
    return ServerMetrics("video", None, MemoryMonitor(device, source=source)).registry
