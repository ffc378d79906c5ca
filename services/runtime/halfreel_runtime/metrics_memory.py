"""A model server's memory as metrics, read at scrape time: devices, phases, budget, host; and of GPUs their work.

What the driver can't be asked for is absent rather than zero. It does not know where the figures come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.gpu_figures import GpuReader
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.suggestions import under_pressure

MODEL_STATES = {
    gpu_pb2.ModelState.Name(value).removeprefix("MODEL_STATE_").lower(): value
    for value in gpu_pb2.ModelState.values()
    if value != gpu_pb2.MODEL_STATE_UNSPECIFIED
}


class MemoryCollector(Collector):
    """Everything of one monitor's report.

    Args:
        service: llm or video.
        memory: whose report is shown.
    """

    def __init__(self, service: str, memory: MemoryMonitor) -> None:
        self._service = service
        self._memory = memory
        self._readers: dict[str, GpuReader] = {}

    def collect(self) -> Iterator[Metric]:
        """Reads counters alone; none of it waits for the GPU's queue."""
        report = self._memory.report()
        families: dict[str, Metric] = {}  # each once, with the samples of all devices
        for device in report.devices:
            for family in self._device(device):
                if family.name in families:
                    families[family.name].samples += family.samples
                else:
                    families[family.name] = family
        yield from families.values()
        labels = {"service": self._service}
        host = report.host
        for name, text, value in (
            ("halfreel_host_memory_total_bytes", "The host's memory.", host.total_bytes),
            ("halfreel_host_memory_available_bytes", "Host memory that is free.", host.available_bytes),
            ("halfreel_process_resident_bytes", "Resident bytes of this process.", host.process_resident_bytes),
            (
                "halfreel_process_resident_peak_bytes",
                "Largest resident bytes of this process.",
                host.process_peak_resident_bytes,
            ),
        ):
            yield gauge(name, text, labels, value)
        states = GaugeMetricFamily(
            "halfreel_model_state", "1 for where the model's weights are.", labels=("service", "state")
        )
        for name, state in MODEL_STATES.items():
            states.add_metric((self._service, name), float(report.model_state == state))
        yield states
        levers = GaugeMetricFamily(
            "halfreel_lever_info", "The levers as they stand; always 1.", labels=("service", "lever", "value")
        )
        for lever in report.levers:
            levers.add_metric((self._service, lever.lever, lever.value), 1)
        yield levers

    def _device(self, device: gpu_pb2.DeviceMemory) -> Iterator[Metric]:
        labels = {"service": self._service, "gpu_uuid": device.gpu_uuid}
        named = {**labels, "gpu_name": device.device_name}
        known = bool(device.device_used_bytes)
        yield gauge("halfreel_gpu_memory_total_bytes", "Memory of the device.", named, device.device_total_bytes)
        if known:
            for name, text, value in (
                ("used", "Device memory in use by all processes.", device.device_used_bytes),
                ("free", "Free device memory.", device.device_free_bytes),
            ):
                yield gauge(f"halfreel_gpu_memory_{name}_bytes", text, named, value)
            text = "Device memory that other processes hold."
            yield gauge("halfreel_memory_other_processes_bytes", text, labels, device.other_processes_bytes)
        if known or device.budget_bytes:
            text = "What the server may still take: of its budget, or of the device where that has less."
            yield gauge("halfreel_memory_headroom_bytes", text, labels, device.headroom_bytes)
        limits = self._memory.limits
        for name, text, number in (
            ("halfreel_torch_memory_allocated_bytes", "Bytes in live tensors.", device.allocated_bytes),
            ("halfreel_torch_memory_reserved_bytes", "Bytes held by the allocator.", device.reserved_bytes),
            ("halfreel_memory_context_bytes", "Bytes the driver keeps for the process.", device.context_bytes),
            ("halfreel_memory_budget_bytes", "The most the server may use; 0 for no budget.", device.budget_bytes),
            ("halfreel_memory_warn_ratio", "Use at which memory counts as short; 0 for never.", limits.warn_ratio),
            ("halfreel_memory_min_free_bytes", "What should stay free; 0 for nothing.", limits.min_free_bytes),
            ("halfreel_memory_short", "1 while memory is short.", float(under_pressure(device, limits))),
        ):
            yield gauge(name, text, labels, number)
        yield from self._peaks(device, labels)
        if device.device_kind == gpu_pb2.DEVICE_KIND_CUDA:
            yield from self._work(device.gpu_uuid, named)

    def _peaks(self, device: gpu_pb2.DeviceMemory, labels: dict[str, str]) -> Iterator[Metric]:
        windows = {"process": device.process_peak}
        # Of a replica's device the process's alone is known.
        if device.HasField("request_peak"):
            windows["request"] = device.request_peak
        if device.HasField("recent_peak"):
            windows["minute"] = device.recent_peak
        for kind in ("allocated", "reserved"):
            peaks = GaugeMetricFamily(
                f"halfreel_torch_memory_{kind}_peak_bytes",
                "Largest bytes of the process, of the running or last request, and of the last 60 s.",
                labels=(*labels, "window"),
            )
            for window, peak in windows.items():
                peaks.add_metric((*labels.values(), window), getattr(peak, f"{kind}_bytes"))
            yield peaks
        measured, predicted = (
            GaugeMetricFamily(name, text, labels=(*labels, "phase"))
            for name, text in (
                ("halfreel_phase_memory_peak_bytes", "Largest reserved bytes of each phase, as its last job left it."),
                ("halfreel_phase_memory_predicted_bytes", "What the plan of that job predicted for it."),
            )
        )
        for each in device.phase_peaks:
            measured.add_metric((*labels.values(), each.phase), each.peak.reserved_bytes)
            if each.predicted_reserved_bytes:
                predicted.add_metric((*labels.values(), each.phase), each.predicted_reserved_bytes)
        yield measured
        yield predicted

    def _work(self, gpu_uuid: str, labels: dict[str, str]) -> Iterator[Metric]:
        """What the whole GPU does, for whichever process."""
        if gpu_uuid not in self._readers:
            self._readers[gpu_uuid] = GpuReader(gpu_uuid)
        figures = self._readers[gpu_uuid].read()
        for name, text, value in (
            ("halfreel_gpu_utilization_ratio", "Part of the time in which a kernel ran.", figures.utilization_ratio),
            ("halfreel_gpu_power_watts", "Power that the GPU draws.", figures.power_watts),
            ("halfreel_gpu_temperature_celsius", "Temperature of the GPU.", figures.temperature_celsius),
        ):
            if value is not None:
                yield gauge(name, text, labels, value)
        if figures.energy_joules is not None:
            energy = CounterMetricFamily(
                "halfreel_gpu_energy_joules", "Energy since the driver was loaded.", labels=tuple(labels)
            )
            energy.add_metric(tuple(labels.values()), figures.energy_joules)
            yield energy


def gauge(name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
    """A gauge of one sample."""
    family = GaugeMetricFamily(name, text, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), value)
    return family
