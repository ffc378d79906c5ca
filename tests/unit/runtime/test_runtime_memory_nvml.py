"""What is told of a GPU when its driver stops answering in mid-flight, and when another process comes to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pynvml = pytest.importorskip("pynvml")

from halfreel.gpu.v1 import gpu_pb2  # noqa: E402
from halfreel_runtime.device import Device  # noqa: E402
from halfreel_runtime.memory import MemoryMonitor  # noqa: E402
from halfreel_runtime.sleeper import Sleeper  # noqa: E402
from halfreel_runtime.suggestions import MemoryLimits  # noqa: E402

GIB = 2**30
DEVICE = Device("cuda", 0, "GPU-1", "NVIDIA Test", "cuda:0", used_at_start_bytes=GIB)


class Gpu:
    """16 GiB; GIB of others, a context of half a GIB, and what is reserved."""

    def __init__(self) -> None:
        self.others, self.reserved, self.lost = GIB, 4 * GIB, False
        self.own_pid_known = False

    def memory(self, handle: object) -> SimpleNamespace:
        self.answer()
        used = self.others + self.reserved + GIB // 2
        return SimpleNamespace(total=16 * GIB, used=used, free=16 * GIB - used)

    def processes(self, handle: object) -> list[SimpleNamespace]:
        self.answer()
        return []

    def answer(self) -> None:
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    def stats(self, index: int) -> dict[str, Any]:
        figures = {"all": {"current": self.reserved, "peak": self.reserved}}
        return {"allocated_bytes": figures, "reserved_bytes": figures}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=15 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", gpu.stats)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda index: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", gpu.memory)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", gpu.processes)
    return gpu


def test_a_driver_that_fails_in_mid_flight_leaves_figures_absent_and_the_rest_right(gpu: Gpu) -> None:
    monitor = MemoryMonitor(DEVICE, budget_bytes=8 * GIB, limits=MemoryLimits(0.5, GIB))
    with monitor.request("r"), monitor.phase("denoise"):
        gpu.lost = True
    device = monitor.report().devices[0]
    assert (device.device_used_bytes, device.device_free_bytes, device.other_processes_bytes) == (0, 0, 0)
    assert device.device_total_bytes == 15 * GIB  # as the allocator has it
    assert device.context_bytes == 0
    assert (device.allocated_bytes, device.request_peak.reserved_bytes) == (4 * GIB, 4 * GIB)
    assert device.headroom_bytes == 4 * GIB  # of the budget: of the device nothing is known
    gpu.lost = False
    with monitor.phase("decode"):
        pass
    device = monitor.report().devices[0]
    assert (device.device_used_bytes, device.context_bytes, device.other_processes_bytes) == (
        5 * GIB + GIB // 2,
        GIB // 2,
        GIB,
    )


def test_samples_and_sleep_go_on_without_the_driver(gpu: Gpu) -> None:
    monitor = MemoryMonitor(DEVICE)
    gpu.lost = True
    monitor._sample()
    assert monitor.history()[-1].device_used_bytes == 0
    assert monitor.history()[-1].reserved_bytes == 4 * GIB

    class Model:
        weight_bytes = 3 * GIB

        def prepare_sleep(self) -> None: ...

        def sleep(self) -> None:
            gpu.reserved = GIB

        def wake(self) -> None:
            gpu.reserved = 4 * GIB

    sleeper = Sleeper(monitor)
    sleeper.model_loaded(Model())
    assert sleeper.sleep().freed_bytes == 3 * GIB  # by the allocator, where the driver can't be asked
    sleeper.wake()
    assert sleeper.state == gpu_pb2.MODEL_STATE_AWAKE


def test_another_process_that_comes_later_is_no_part_of_the_context(gpu: Gpu) -> None:
    monitor = MemoryMonitor(DEVICE)
    with monitor.phase("load"):
        pass
    gpu.others = 11 * GIB
    with monitor.phase("decode"):
        pass
    device = monitor.report().devices[0]
    assert device.context_bytes == GIB // 2
    assert device.other_processes_bytes == 11 * GIB
