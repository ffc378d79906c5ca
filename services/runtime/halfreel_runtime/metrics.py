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
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from halfreel_runtime.engine import Engine, EngineState
from halfreel_runtime.errors import Internal
from halfreel_runtime.instruments import DURATION_BUCKETS_S, Instruments
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.metrics_memory import MemoryCollector, gauge
from halfreel_runtime.tracing import exemplar, span_counts


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
        self._failed.labels(self._service, name, Internal.default_reason)
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
        self.registry.register(_TraceCollector(service))
        if engine is not None:
            self.registry.register(_EngineCollector(service, engine))
        if memory is not None:
            self.registry.register(MemoryCollector(service, memory))
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


class _TraceCollector(Collector):
    def __init__(self, service: str) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "halfreel_trace_spans",
            "Spans that the collector of traces took, or did not.",
            labels=("service", "outcome"),
        )
        for outcome, count in span_counts().items():
            family.add_metric((self._service, outcome), count)
        yield family


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
            (
                "halfreel_progress_age_seconds",
                "For how long no running request has shown progress; 0 when none runs.",
                engine.silent_s,
            ),
        ):
            yield gauge(name, text, {"service": self._service}, value)
        states = GaugeMetricFamily(
            "halfreel_engine_state", "1 for the state the engine is in.", labels=("service", "state")
        )
        for state in EngineState:
            states.add_metric((self._service, state.value), float(engine.state is state))
        yield states


def _version() -> str:
    try:
        return importlib.metadata.version("halfreel-runtime")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that nobody installed
        return "source"


def _method_name(method: str) -> str:
    """The last parts of a full name: LlmService/Generate of /halfreel.llm.v1.LlmService/Generate."""
    return method.rsplit(".", 1)[-1]
