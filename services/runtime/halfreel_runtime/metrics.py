"""A server's metrics for Prometheus: calls counted as they end, everything else read at scrape time.

No label holds what a client sent. It does not know HTTP: `metrics_http` serves the registry.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.engine import Engine, EngineState
from halfreel_runtime.instruments import DURATION_BUCKETS_S, Instruments
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.tracing import exemplar


class CallMetrics:
    """Counts the calls of one server."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self._service = service
        self._methods: set[str] = set()
        names = ("service", "method")
        self._total = Counter(
            "halfreel_requests", "Calls that ended, by status code.", (*names, "code"), registry=registry
        )
        self._seconds = Histogram(
            "halfreel_request_duration_seconds",
            "How long calls took.",
            names,
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._failed = Counter(
            "halfreel_requests_failed",
            "Calls that ended otherwise than well, by the reason that the client was told.",
            (*names, "reason"),
            registry=registry,
        )
        self._open = Gauge("halfreel_calls_open", "Calls that run now.", names, registry=registry)

    def add_method(self, method: str) -> None:
        """Makes a method's zero values; "/package.Service/Method" as gRPC names it."""
        name = _method_name(method)
        self._methods.add(method)
        self._total.labels(self._service, name, grpc.StatusCode.OK.name)
        self._seconds.labels(self._service, name)
        self._open.labels(self._service, name)

    def refused(self, method: str, code: grpc.StatusCode, reason: str) -> None:
        """A call was not let in; one to a method that is not ours leaves no trace, or clients could name labels."""
        if method in self._methods:
            self._total.labels(self._service, _method_name(method), code.name).inc()
            self._failed.labels(self._service, _method_name(method), reason).inc()

    def began(self, method: str) -> None:
        """A call began."""
        self._open.labels(self._service, _method_name(method)).inc()

    def ended(self, method: str, code: grpc.StatusCode, reason: str, seconds: float) -> None:
        """A call ended; `reason` is empty for one that succeeded."""
        name = _method_name(method)
        self._open.labels(self._service, name).dec()
        self._total.labels(self._service, name, code.name).inc(1, exemplar())
        self._seconds.labels(self._service, name).observe(seconds, exemplar())
        if reason:
            self._failed.labels(self._service, name, reason).inc(1, exemplar())


class ServerMetrics:
    """All metrics of one server process; a service adds its own to `registry`.

    Args:
        service: llm, video or gateway.
        engine: whose queue and state are shown; None where there is none.
        memory: whose figures are shown; None where there is none.
        instruments: what the work itself counts; None where there is none.
    """

    def __init__(
        self,
        service: str,
        engine: Engine[Any] | None,
        memory: MemoryMonitor | None,
        instruments: Instruments | None = None,
    ) -> None:
        disable_created_metrics()
        self._service = service
        self.registry = CollectorRegistry(auto_describe=False)
        self.calls = CallMetrics(service, self.registry)
        self.registry.register(_Build(service))
        if engine is not None:
            self.registry.register(_EngineCollector(service, engine))
        if memory is not None:
            self.registry.register(_MemoryCollector(service, memory))
        if instruments is not None:
            self.registry.register(instruments.registry)

    def show_certificate(self, expires: Callable[[], datetime]) -> None:
        """Shows when the server's certificate ends, so that somebody can be told before."""
        gauge = Gauge(
            "halfreel_tls_certificate_expiry_timestamp_seconds",
            "When the server's certificate ends, in seconds since 1970.",
            ("service",),
            registry=self.registry,
        )
        gauge.labels(self._service).set_function(lambda: expires().timestamp())


class _Build(Collector):
    def __init__(self, service: str) -> None:
        self._value = {"service": service, "version": _version()}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("halfreel_build", "The version that runs.", value=self._value)


class _EngineCollector(Collector):
    def __init__(self, service: str, engine: Engine[Any]) -> None:
        self._service = service
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        for name, text, value in (
            ("halfreel_requests_running", "Requests the engine works on.", engine.running_count),
            ("halfreel_requests_waiting", "Requests that wait for the engine.", engine.waiting_count),
            ("halfreel_queue_oldest_age_seconds", "How long the oldest waiting request waits.", engine.oldest_wait_s),
        ):
            yield _gauge(name, text, {"service": self._service}, value)
        states = GaugeMetricFamily(
            "halfreel_model_state", "1 for the state the engine is in.", labels=("service", "state")
        )
        for state in EngineState:
            states.add_metric((self._service, state.value), float(engine.state is state))
        yield states


class _MemoryCollector(Collector):
    def __init__(self, service: str, memory: MemoryMonitor) -> None:
        self._service = service
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        report = self._memory.report()
        for device in report.devices:
            yield from self._device(device)
        labels = {"service": self._service}
        host = report.host
        yield _gauge("halfreel_host_memory_total_bytes", "The host's memory.", labels, host.total_bytes)
        yield _gauge(
            "halfreel_host_memory_available_bytes",
            "Host memory that is free.",
            labels,
            host.available_bytes,
        )
        yield _gauge(
            "halfreel_process_resident_bytes", "Resident bytes of this process.", labels, host.process_resident_bytes
        )

    def _device(self, device: gpu_pb2.DeviceMemory) -> Iterator[Metric]:
        labels = {"service": self._service, "gpu_uuid": device.gpu_uuid}
        named = {**labels, "gpu_name": device.device_name}
        for name, text, value in (
            ("halfreel_gpu_memory_total_bytes", "Memory of the device.", device.device_total_bytes),
            ("halfreel_gpu_memory_used_bytes", "Device memory in use by all processes.", device.device_used_bytes),
            ("halfreel_gpu_memory_free_bytes", "Free device memory.", device.device_free_bytes),
        ):
            yield _gauge(name, text, named, value)
        for name, text, value in (
            ("halfreel_torch_memory_allocated_bytes", "Bytes in live tensors.", device.allocated_bytes),
            ("halfreel_torch_memory_reserved_bytes", "Bytes held by the allocator.", device.reserved_bytes),
            ("halfreel_memory_context_bytes", "Bytes the driver keeps for the process.", device.context_bytes),
            ("halfreel_memory_budget_bytes", "The most the server may use; 0 for no budget.", device.budget_bytes),
        ):
            yield _gauge(name, text, labels, value)
        windows = {"process": device.process_peak, "request": device.request_peak}
        for kind in ("allocated", "reserved"):
            peaks = GaugeMetricFamily(
                f"halfreel_torch_memory_{kind}_peak_bytes",
                "Largest bytes of the process, and of the running or last request.",
                labels=(*labels, "window"),
            )
            for window, peak in windows.items():
                peaks.add_metric((*labels.values(), window), getattr(peak, f"{kind}_bytes"))
            yield peaks
        phases = GaugeMetricFamily(
            "halfreel_phase_memory_peak_bytes",
            "Largest reserved bytes of each phase, as the last job that had it left it.",
            labels=(*labels, "phase"),
        )
        for each in device.phase_peaks:
            phases.add_metric((*labels.values(), each.phase), each.peak.reserved_bytes)
        yield phases


def _version() -> str:
    try:
        return importlib.metadata.version("halfreel-runtime")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that nobody installed
        return "source"


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), value)
    return family


def _method_name(method: str) -> str:
    """The last parts of a full name: LlmService/Generate of /halfreel.llm.v1.LlmService/Generate."""
    return method.rsplit(".", 1)[-1]
