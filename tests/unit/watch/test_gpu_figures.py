"""A GPU's work as the driver tells it: right in its units, absent where the driver can't be asked, never zero."""

from __future__ import annotations

import logging

import pytest
from fake_nvml import GPU, GPU_FIGURES, FakeNvml, GpuLike, gpu_metrics
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from halfreel_runtime import gpu_figures
from halfreel_runtime.gpu_figures import GpuFigures, GpuReader


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    fake.install(monkeypatch)
    return fake


def test_figures_are_in_base_units(nvml: FakeNvml) -> None:
    assert GpuReader(GPU).read() == GpuFigures(
        utilization_ratio=0.87, power_watts=651.2, temperature_celsius=61, energy_joules=123456.789
    )


def test_without_a_driver_there_is_nothing_and_one_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    reader = GpuReader(GPU)  # this machine has none
    with caplog.at_level(logging.WARNING):
        assert [reader.read() for _ in range(3)] == [GpuFigures()] * 3
    assert [record.message for record in caplog.records] == ["gpu_figures_absent"]


def test_a_sensor_that_a_gpu_lacks_is_absent_alone(nvml: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.lacks = {"nvmlDeviceGetTotalEnergyConsumption"}
    figures = GpuReader(GPU).read()
    assert figures.energy_joules is None
    assert figures.power_watts == 651.2
    assert caplog.records == []


def test_a_driver_that_fails_midway_is_absent_and_comes_back(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = GpuReader(GPU)
    assert reader.read().power_watts == 651.2
    nvml.lost = True
    assert reader.read() == GpuFigures()
    assert reader.read() == GpuFigures()
    nvml.lost = False
    assert reader.read() == GpuFigures()  # it is asked again after a while, not at every scrape
    monkeypatch.setattr(gpu_figures, "RETRY_AFTER_S", 0.0)
    assert reader.read().power_watts == 651.2
    assert [record.message for record in caplog.records] == ["gpu_figures_absent"]


def names(registry: CollectorRegistry) -> set[str]:
    text = generate_latest(registry).decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_a_scrape_shows_a_gpu_as_long_as_the_driver_answers(nvml: FakeNvml) -> None:
    source = GpuLike()
    registry = gpu_metrics(source)
    figures = {name.replace("_joules", "_joules_total") for name in GPU_FIGURES}
    of_driver = {
        "halfreel_gpu_memory_free_bytes",
        "halfreel_gpu_memory_used_bytes",
        "halfreel_memory_headroom_bytes",
        "halfreel_memory_other_processes_bytes",
    }
    assert figures | of_driver <= names(registry)
    nvml.lost, source.used = True, None
    seen = names(registry)
    assert not (figures | of_driver) & seen
    assert {"halfreel_gpu_memory_total_bytes", "halfreel_torch_memory_reserved_bytes"} <= seen
