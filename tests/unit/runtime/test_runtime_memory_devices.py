"""The memory of a server whose model has replicas on other devices."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.device import CPU
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.metrics_memory import MemoryCollector

GIB = 2**30
OTHER = replace(CPU, gpu_uuid="GPU-other", name="other")


def test_every_device_has_an_entry_and_the_budget_is_the_firsts() -> None:
    monitor = MemoryMonitor(CPU, budget_bytes=GIB, other_devices=[OTHER])
    with monitor.request("r"), monitor.phase("denoise"):
        first, other = monitor.report().devices
    assert (first.gpu_uuid, other.gpu_uuid, other.device_name) == ("cpu", "GPU-other", "other")
    assert (first.current_phase, other.current_phase) == ("denoise", "denoise")
    assert (first.budget_bytes, other.budget_bytes) == (GIB, 0)
    assert other.device_kind == gpu_pb2.DEVICE_KIND_CPU
    assert other.reserved_bytes > 0
    assert other.process_peak.reserved_bytes >= other.reserved_bytes
    assert [each.phase for each in first.phase_peaks] == ["denoise"]
    assert not other.phase_peaks


def test_metrics_tell_each_family_once_with_every_device() -> None:
    registry = CollectorRegistry()
    registry.register(MemoryCollector("video", MemoryMonitor(CPU, other_devices=[OTHER])))
    text = generate_latest(registry).decode()
    helps = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(helps) == len(set(helps))
    reserved = [line for line in text.splitlines() if line.startswith("halfreel_torch_memory_reserved_bytes{")]
    assert [sum(f'gpu_uuid="{name}"' in line for line in reserved) for name in ("cpu", "GPU-other")] == [1, 1]
