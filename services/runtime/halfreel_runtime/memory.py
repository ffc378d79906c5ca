"""What a server uses of memory: now, and at most per phase, per request and since it started.

The engine's thread opens phases and requests; anybody may read a report at any time, and never waits for a GPU.
It does not know what the phases compute, nor where the numbers come from (`MemorySource`).
"""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.device import Device
from halfreel_runtime.memory_cpu import CpuMemorySource
from halfreel_runtime.memory_source import Bytes, MemorySource

_logger = logging.getLogger(__name__)
_DEVICE_KINDS = {"cpu": gpu_pb2.DEVICE_KIND_CPU, "cuda": gpu_pb2.DEVICE_KIND_CUDA}
# getrusage counts KiB on Linux and bytes on macOS.
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass
class _Phase:
    peak: Bytes = field(default_factory=Bytes)
    seconds: float = 0.0


@dataclass
class _Record:
    """The peaks of one request, or of work outside of any."""

    peak: Bytes = field(default_factory=Bytes)
    phases: dict[str, _Phase] = field(default_factory=dict)


class RequestMemory:
    """The peaks of one request, while it runs and after."""

    def __init__(self, monitor: MemoryMonitor, record: _Record) -> None:
        self._monitor = monitor
        self._record = record

    @property
    def peak(self) -> gpu_pb2.MemoryPeak:
        """The request's largest bytes."""
        return self._monitor._request_peak(self._record)

    @property
    def phase_peaks(self) -> list[gpu_pb2.PhasePeak]:
        """The largest bytes and the seconds of each of its phases, in the order they first began."""
        return self._monitor._phase_peaks(self._record)


class MemoryMonitor:
    """Keeps the peaks, and makes reports.

    Args:
        device: what the model runs on; make the monitor before the process first uses it.
        budget_bytes: the most this server may use; 0 for no budget.
    """

    def __init__(self, device: Device, *, budget_bytes: int = 0) -> None:
        self._device = device
        self._budget_bytes = budget_bytes
        self._source = _source_of(device)
        self._lock = threading.Lock()  # held for reading counters, never for work
        self._process_peak = self._source.live()
        self._open: list[tuple[str, _Phase]] = []
        self._record = _Record()
        self._request: _Record | None = None
        self._last_request = _Record()
        self._latest: dict[str, _Phase] = {}
        self._folded_at = time.perf_counter()
        self._process = psutil.Process()
        self._host_total = psutil.virtual_memory().total

    # The engine's thread.

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Work of one name. Inside another phase the inner one alone is charged; then the outer goes on.

        A phase that runs several times in one request has one peak and one sum of seconds.
        """
        with self._lock:
            self._fold()
            if not self._open and self._request is None:
                self._record = _Record()
            phase = self._latest[name] = self._record.phases.setdefault(name, _Phase())
            self._open.append((name, phase))
            self._source.watch(True)
        try:
            yield
        finally:
            self._source.observe()
            with self._lock:
                self._fold()
                self._open.pop()
                self._source.watch(bool(self._open) or self._request is not None)

    @contextlib.contextmanager
    def request(self, request_id: str) -> Iterator[RequestMemory]:
        """One request, from its first phase to its last; its peaks are logged at its end."""
        with self._lock:
            self._fold()
            self._request = self._last_request = self._record = _Record()
            self._source.watch(True)
        try:
            yield RequestMemory(self, self._last_request)
        finally:
            with self._lock:
                self._fold()
                record, self._request = self._last_request, None
                self._source.watch(bool(self._open))
            _logger.info(
                "request_memory",
                extra={
                    "request_id": request_id,
                    "peak_allocated_bytes": record.peak.allocated,
                    "peak_reserved_bytes": record.peak.reserved,
                },
            )

    def clear(self) -> int:
        """Gives cached but unused memory back; live tensors stay. Run it in the engine's thread, between jobs.

        Returns:
            The bytes that went back to the device.
        """
        before = self._source.live().reserved
        self._source.release_cached()
        return max(0, before - self._source.live().reserved)

    # Anybody.

    def report(self) -> gpu_pb2.MemoryReport:
        """The memory at this moment; under a millisecond, whatever the device does."""
        report = gpu_pb2.MemoryReport()
        report.read_time.GetCurrentTime()
        device = report.devices.add(
            gpu_uuid=self._device.gpu_uuid,
            device_name=self._device.name,
            device_kind=_DEVICE_KINDS[self._device.kind],
            budget_bytes=self._budget_bytes,
        )
        with self._lock:
            live, window = self._source.live(), self._source.window_peak()
            device.process_peak.CopyFrom(self._process_peak.max(window).message())
            device.request_peak.CopyFrom(self._peak_of(self._last_request, window).message())
            device.phase_peaks.extend(self._messages(self._latest, window))
            device.current_phase = self._open[-1][0] if self._open else ""
        device.allocated_bytes, device.reserved_bytes = live.allocated, live.reserved
        self._source.fill(device)
        report.host.total_bytes = self._host_total
        report.host.available_bytes = psutil.virtual_memory().available
        report.host.process_resident_bytes = self._process.memory_info().rss
        report.host.process_peak_resident_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
        return report

    def reset_peaks(self) -> None:
        """Sets the process's and the phases' peaks to the present values."""
        with self._lock:
            self._fold()
            live = self._source.live()
            self._process_peak = live
            for phase in self._latest.values():
                phase.peak = live

    # With the lock held.

    def _fold(self) -> None:
        """Charges the window that ends now to whatever was open in it, and begins the next."""
        now = time.perf_counter()
        window = self._source.window_peak()
        self._source.reset_window()
        self._process_peak = self._process_peak.max(window)
        if self._request is not None:
            self._request.peak = self._request.peak.max(window)
        if self._open:
            _, phase = self._open[-1]
            phase.peak = phase.peak.max(window)
            phase.seconds += now - self._folded_at
        self._folded_at = now

    def _messages(self, phases: dict[str, _Phase], window: Bytes) -> Iterator[gpu_pb2.PhasePeak]:
        running = self._open[-1][1] if self._open else None
        for name, phase in phases.items():
            peak, seconds = phase.peak, phase.seconds
            if phase is running:
                peak = peak.max(window)
                seconds += time.perf_counter() - self._folded_at
            message = gpu_pb2.PhasePeak(phase=name, peak=peak.message())
            message.duration.FromNanoseconds(round(seconds * 1e9))
            yield message

    def _peak_of(self, record: _Record, window: Bytes) -> Bytes:
        return record.peak.max(window) if record is self._request else record.peak

    # For RequestMemory.

    def _request_peak(self, record: _Record) -> gpu_pb2.MemoryPeak:
        with self._lock:
            return self._peak_of(record, self._source.window_peak()).message()

    def _phase_peaks(self, record: _Record) -> list[gpu_pb2.PhasePeak]:
        with self._lock:
            return list(self._messages(record.phases, self._source.window_peak()))


def _source_of(device: Device) -> MemorySource:
    if device.kind == "cpu":
        return CpuMemorySource()
    from halfreel_runtime.memory_cuda import CudaMemorySource

    return CudaMemorySource(device)
