"""The GPU's figures, from a driver and an allocator played by the test: a machine without a GPU runs the same code."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pynvml = pytest.importorskip("pynvml")

from halfreel.gpu.v1 import gpu_pb2  # noqa: E402 - after the skips
from halfreel_runtime.device import find_device  # noqa: E402
from halfreel_runtime.memory import MemoryMonitor  # noqa: E402

GIB = 2**30
UUID = "8a6f5f6e-1111-2222-3333-444455556666"


class Gpu:
    """A card of 16 GiB of which another process uses one, and torch's caching allocator on it."""

    def __init__(self) -> None:
        self.allocated = self.allocated_peak = self.reserved = self.reserved_peak = 0
        self.context = 0
        self.others = GIB
        self.pid_listed = True

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        self.reserved = max(self.reserved, self.allocated)
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def reset(self, index: int) -> None:
        self.allocated_peak, self.reserved_peak = self.allocated, self.reserved

    def empty(self) -> None:
        self.reserved = self.allocated

    def stats(self, index: int) -> dict[str, Any]:
        return {
            "allocated_bytes": {"all": {"current": self.allocated, "peak": self.allocated_peak}},
            "reserved_bytes": {"all": {"current": self.reserved, "peak": self.reserved_peak}},
        }

    def memory_info(self, handle: str) -> SimpleNamespace:
        used = self.others + self.context + self.reserved
        return SimpleNamespace(total=16 * GIB, used=used, free=16 * GIB - used)

    def processes(self, handle: str) -> list[SimpleNamespace]:
        mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=self.context + self.reserved)
        return [SimpleNamespace(pid=1, usedGpuMemory=self.others), *([mine] if self.pid_listed else [])]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    properties = SimpleNamespace(name="NVIDIA Test", total_memory=15 * GIB, uuid=UUID)

    def properties_of(index: int) -> SimpleNamespace:
        gpu.context = GIB // 2  # torch may make a context as soon as it is asked anything
        return properties

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_initialized": lambda: True,
        "get_device_properties": properties_of,
        "memory_stats_as_nested_dict": gpu.stats,
        "reset_peak_memory_stats": gpu.reset,
        "empty_cache": gpu.empty,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, value in {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"GPU-{UUID}",
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetMemoryInfo": gpu.memory_info,
        "nvmlDeviceGetComputeRunningProcesses": gpu.processes,
    }.items():
        monkeypatch.setattr(pynvml, name, value)
    return gpu


@pytest.mark.parametrize("spec", ["auto", "cuda", "cuda:0", f"GPU-{UUID}"])
def test_the_gpu_is_found_by_any_of_its_names(gpu: Gpu, spec: str) -> None:
    device = find_device(spec)
    assert (device.kind, device.torch_name, device.gpu_uuid) == ("cuda", "cuda:0", f"GPU-{UUID}")


def test_a_part_of_a_gpu_is_found_by_its_uuid(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    part = "MIG-aaaaaaaa-0000-0000-0000-000000000001"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount", lambda handle: 2)

    def part_of(handle: str, number: int) -> str:
        if number:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return part

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", part_of)
    device = find_device(part)
    assert (device.torch_name, device.gpu_uuid) == ("cuda:0", part)
    assert device.used_at_start_bytes == gpu.others
    assert os.environ.pop("CUDA_VISIBLE_DEVICES") == part


@pytest.mark.parametrize("pid_listed", [True, False], ids=["pid", "container"])
def test_peaks_context_and_device_figures(gpu: Gpu, pid_listed: bool) -> None:
    gpu.pid_listed = pid_listed
    monitor = MemoryMonitor(find_device("auto"), budget_bytes=8 * GIB)
    with monitor.phase("load"):
        gpu.allocate(2 * GIB)
    with monitor.request("r") as request:
        with monitor.phase("denoise"):
            gpu.allocate(4 * GIB)
            gpu.allocate(-4 * GIB)
        with monitor.phase("decode"):
            gpu.allocate(GIB)
            gpu.allocate(-GIB)
    peaks = {each.phase: each.peak for each in request.phase_peaks}
    assert peaks["denoise"] == gpu_pb2.MemoryPeak(allocated_bytes=6 * GIB, reserved_bytes=6 * GIB)
    assert peaks["decode"] == gpu_pb2.MemoryPeak(allocated_bytes=3 * GIB, reserved_bytes=6 * GIB)
    assert request.peak == peaks["denoise"]
    [device] = monitor.report().devices
    assert device.device_kind == gpu_pb2.DEVICE_KIND_CUDA
    assert (device.device_total_bytes, device.device_used_bytes) == (16 * GIB, int(7.5 * GIB))
    assert device.device_used_bytes + device.device_free_bytes == device.device_total_bytes
    assert (device.allocated_bytes, device.reserved_bytes) == (2 * GIB, 6 * GIB)
    assert device.context_bytes == GIB // 2
    assert device.process_peak.reserved_bytes == 6 * GIB
    assert monitor.clear() == 4 * GIB
    monitor.reset_peaks()
    assert monitor.report().devices[0].process_peak.reserved_bytes == 2 * GIB


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryInfo"])
def test_without_nvml_the_allocators_figures_remain(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def fail(*arguments: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, broken, fail)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", fail)
    monitor = MemoryMonitor(find_device("auto"))
    with monitor.phase("load"):
        gpu.allocate(GIB)
    [device] = monitor.report().devices
    assert (device.device_total_bytes, device.device_used_bytes, device.device_free_bytes) == (15 * GIB, 0, 0)
    assert (device.context_bytes, device.reserved_bytes) == (0, GIB)
