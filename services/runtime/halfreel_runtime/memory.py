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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.device import Device
from halfreel_runtime.history import SAMPLE_S, MemoryHistory, RecentPeak, every
from halfreel_runtime.host_memory import host_memory
from halfreel_runtime.memory_cpu import CpuMemorySource
from halfreel_runtime.memory_record import PhaseRecord, RequestRecord
from halfreel_runtime.memory_source import Bytes, MemorySource
from halfreel_runtime.suggestions import MemoryLimits, suggestions, under_pressure

_logger = logging.getLogger(__name__)
_DEVICE_KINDS = {"cpu": gpu_pb2.DEVICE_KIND_CPU, "cuda": gpu_pb2.DEVICE_KIND_CUDA}
# getrusage counts KiB on Linux and bytes on macOS.
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class RequestMemory:
    """The peaks of one request, while it runs and after."""

    def __init__(self, monitor: MemoryMonitor, record: RequestRecord) -> None:
        self._monitor = monitor
        self._record = record

    @property
    def peak(self) -> gpu_pb2.MemoryPeak:
        """The request's largest bytes: the process's, where several requests run at once."""
        return self._monitor._up_to_now(self._record).peak.message()

    @property
    def phase_peaks(self) -> list[gpu_pb2.PhasePeak]:
        """The largest bytes and the seconds of each of its phases, in the order they first began."""
        return list(self._monitor._up_to_now(self._record).messages())

    def predict(self, reserved_bytes: Mapping[str, int]) -> None:
        """Takes what the request's plan expects of each phase, to stand beside what is measured."""
        self._record.predicted_bytes = dict(reserved_bytes)

    def end(self) -> None:
        """The request has ended: its figures stay as they are, and are logged. Only the first call counts."""
        self._monitor._end_request(self._record)


@dataclass(eq=False)
class _OpenPhase:
    """A phase that runs: of these requests, or (None) of whichever run."""

    name: str
    requests: tuple[RequestRecord, ...] | None

    def covers(self, record: RequestRecord) -> bool:
        return self.requests is None or record in self.requests


class MemoryMonitor:
    """Keeps the peaks, and makes reports.

    Args:
        device: what the model runs on; make the monitor before the process first uses it.
        budget_bytes: the most this server may use; 0 for no budget.
        limits: when to warn that memory is short.
        source: where the numbers come from; None for the device's own.
        other_devices: that replicas of the model are on; a report has their bytes now and their largest, no phases,
            and no budget holds for them.
    """

    def __init__(
        self,
        device: Device,
        *,
        budget_bytes: int = 0,
        limits: MemoryLimits | None = None,
        source: MemorySource | None = None,
        other_devices: Sequence[Device] = (),
    ) -> None:
        self._device = device
        self._budget_bytes = budget_bytes
        self._limits = limits if limits is not None else MemoryLimits()
        self._source = source if source is not None else _source_of(device)
        self._others = [(each, _source_of(each)) for each in other_devices]
        self._lock = threading.Lock()  # held for reading counters, never for work
        self._process_peak = self._source.live()
        self._open: list[_OpenPhase] = []
        self._outside = RequestRecord()
        self._requests: list[RequestRecord] = []
        self._last_request = RequestRecord()
        self._latest: dict[str, RequestRecord] = {}
        self._recent = RecentPeak()
        self._history = MemoryHistory()
        self._sampler: threading.Event | None = None
        self._folded_at = time.perf_counter()
        self._process = psutil.Process()
        self._suggesters: list[Callable[[], Sequence[gpu_pb2.Suggestion]]] = []
        self._levers: tuple[gpu_pb2.LeverStatus, ...] = ()
        self._warned = False
        # Where the model's weights are; set by whoever moves them.
        self.model_state: gpu_pb2.ModelState.ValueType = gpu_pb2.MODEL_STATE_LOADING

    # The engine's thread.

    @contextlib.contextmanager
    def phase(self, name: str, of: Sequence[RequestMemory] | None = None) -> Iterator[None]:
        """Work of one name. Inside another phase the inner one alone is charged; then the outer goes on.

        A phase that runs several times in one request has one peak and one sum of seconds. Opening and closing one
        reads the allocator's counters and goes through the open requests, so that a batch keeps its phase open
        across many short steps.

        Args:
            name: as the contract lists them.
            of: whose work it is; None for that of every request that runs, those that begin meanwhile included.
        """
        entry = _OpenPhase(name, None if of is None else tuple(each._record for each in of))
        with self._lock:
            self._fold()
            if not self._open and not self._requests:
                self._outside = RequestRecord()
            self._open.append(entry)
            for record in self._charged():
                if entry.covers(record):
                    record.phases.setdefault(name, PhaseRecord())
                    self._latest[name] = record
            self._source.watch(True)
        try:
            yield
        finally:
            self._source.observe()
            for _, source in self._others:
                source.observe()
            with self._lock:
                self._fold()
                self._open.remove(entry)
                self._source.watch(self._working)

    @contextlib.contextmanager
    def request(self, request_id: str) -> Iterator[RequestMemory]:
        """One request, from its first phase to its last; its peaks are logged at its end."""
        request = self.begin_request(request_id)
        try:
            yield request
        finally:
            request.end()

    def begin_request(self, request_id: str) -> RequestMemory:
        """As `request`, where begin and end are not in one block: several may be open at once. Call its `end`."""
        record = RequestRecord(request_id)
        with self._lock:
            self._fold()
            self._requests.append(record)
            self._last_request = record
            self._source.watch(True)
        return RequestMemory(self, record)

    def clear(self) -> int:
        """Gives cached but unused memory back; live tensors stay. Run it in the engine's thread, between jobs.

        Returns:
            The bytes that went back to the device.
        """
        before = self._source.live().reserved
        self._source.release_cached()
        return max(0, before - self._source.live().reserved)

    # The server.

    def keep_history(self, interval_s: float = SAMPLE_S) -> None:
        """Samples from now on, until the monitor is gone; a second call changes nothing."""
        if self._sampler is None:
            self._sampler = every(interval_s, self._sample, "memory-history")

    def set_levers(self, levers: Sequence[gpu_pb2.LeverStatus]) -> None:
        """Takes the levers that this server was set to or found."""
        self._levers = tuple(levers)

    def add_suggester(self, suggester: Callable[[], Sequence[gpu_pb2.Suggestion]]) -> None:
        """Adds somebody who knows what else would help while memory is short; asked from any thread, must not wait."""
        self._suggesters.append(suggester)

    # Anybody.

    @property
    def device(self) -> Device:
        """What the figures are of."""
        return self._device

    @property
    def budget_bytes(self) -> int:
        """The most this server may use; 0 for no budget."""
        return self._budget_bytes

    @property
    def limits(self) -> MemoryLimits:
        """When memory counts as short."""
        return self._limits

    def live(self) -> Bytes:
        """The process's bytes at this moment."""
        return self._source.live()

    def held(self) -> int:
        """Bytes of the device as its driver counts them; only differences mean something."""
        return self._source.held()

    def free_bytes(self) -> int | None:
        """Bytes free on the device, as its driver says; None where that can't be asked."""
        device = gpu_pb2.DeviceMemory()
        self._source.fill(device)
        return device.device_free_bytes if device.device_used_bytes else None

    def report(self) -> gpu_pb2.MemoryReport:
        """The memory at this moment; under a millisecond, whatever the device does."""
        report = gpu_pb2.MemoryReport(model_state=self.model_state, levers=self._levers)
        report.read_time.GetCurrentTime()
        host = host_memory()
        report.host.total_bytes, report.host.available_bytes = host.total_bytes, host.available_bytes
        report.host.process_resident_bytes = self._process.memory_info().rss
        report.host.process_peak_resident_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
        device = report.devices.add()
        self._fill(device)
        for other, source in self._others:
            self._fill_other(report.devices.add(), other, source)
        if under_pressure(device, self._limits):
            more = [each for suggester in self._suggesters for each in suggester()]
            report.suggestions.extend(suggestions(device, report.model_state, more))
        return report

    def history(self) -> list[gpu_pb2.MemorySample]:
        """The samples of the last minutes, oldest first; none where nobody asked for them to be kept."""
        return self._history.samples()

    def reset_peaks(self) -> None:
        """Sets the process's and the phases' peaks to the present values."""
        with self._lock:
            self._fold()
            live = self._source.live()
            self._process_peak = live
            for _, source in self._others:
                source.reset_window()
            self._recent.clear()
            for name, record in self._latest.items():
                record.phases[name].peak = live

    def _fill(self, device: gpu_pb2.DeviceMemory) -> None:
        _name(device, self._device)
        device.budget_bytes = self._budget_bytes
        with self._lock:
            live, window = self._source.live(), self._source.window_peak()
            device.process_peak.CopyFrom(self._process_peak.max(window).message())
            device.recent_peak.CopyFrom(self._recent.peak(time.monotonic(), window).message())
            peak = self._last_request.peak
            for record in self._requests:  # the largest of those that run
                peak = peak.max(record.peak).max(window)
            device.request_peak.CopyFrom(peak.message())
            now = {id(record): self._with_window(record, window) for record in self._latest.values()}
            device.phase_peaks.extend(now[id(record)].message(name) for name, record in self._latest.items())
            device.current_phase = self._open[-1].name if self._open else ""
        _fill_now(device, live, self._source)

    def _fill_other(self, device: gpu_pb2.DeviceMemory, other: Device, source: MemorySource) -> None:
        _name(device, other)
        # Nobody else begins a window there, so that it is the process's.
        device.process_peak.CopyFrom(source.window_peak().message())
        with self._lock:
            device.current_phase = self._open[-1].name if self._open else ""
        _fill_now(device, source.live(), source)

    def _sample(self) -> None:
        """Adds to the history, and says in the log when memory gets short; from the sampler's thread."""
        device = gpu_pb2.DeviceMemory()
        self._fill(device)
        with self._lock:
            if not self._working:  # the engine's thread allocates nothing: no peak can fall between two readings
                self._fold()
        sample = gpu_pb2.MemorySample(
            gpu_uuid=device.gpu_uuid,
            device_used_bytes=device.device_used_bytes,
            allocated_bytes=device.allocated_bytes,
            reserved_bytes=device.reserved_bytes,
            phase=device.current_phase,
        )
        sample.read_time.GetCurrentTime()
        self._history.add(sample)
        short = under_pressure(device, self._limits)
        if short and not self._warned:
            _logger.warning(
                "memory_short",
                extra={
                    "headroom_bytes": device.headroom_bytes,
                    "device_used_bytes": device.device_used_bytes,
                    "device_total_bytes": device.device_total_bytes,
                },
            )
        self._warned = short

    # With the lock held.

    @property
    def _working(self) -> bool:
        return bool(self._open or self._requests)

    def _charged(self) -> Sequence[RequestRecord]:
        return self._requests or (self._outside,)

    def _innermost(self, record: RequestRecord) -> str | None:
        return next((each.name for each in reversed(self._open) if each.covers(record)), None)

    def _fold(self) -> None:
        """Charges the window that ends now to whatever was open in it, and begins the next."""
        now = time.perf_counter()
        window = self._source.window_peak()
        self._source.reset_window()
        self._process_peak = self._process_peak.max(window)
        self._recent.add(time.monotonic(), window)
        for record in self._charged():
            phase = self._innermost(record)
            record.charge(phase, window, now - self._folded_at)
            if phase is not None:
                self._latest[phase] = record
        self._folded_at = now

    def _with_window(self, record: RequestRecord, window: Bytes) -> RequestRecord:
        """The record as it is with the window that has not ended yet."""
        if record not in self._charged():
            return record
        copy = record.copy()
        copy.charge(self._innermost(record), window, time.perf_counter() - self._folded_at)
        return copy

    # For RequestMemory.

    def _up_to_now(self, record: RequestRecord) -> RequestRecord:
        with self._lock:
            return self._with_window(record, self._source.window_peak())

    def _end_request(self, record: RequestRecord) -> None:
        with self._lock:
            if record not in self._requests:
                return
            self._fold()
            self._requests.remove(record)
            self._last_request = record
            self._source.watch(self._working)
        _logger.info(
            "request_memory",
            extra={
                "request_id": record.request_id,
                "peak_allocated_bytes": record.peak.allocated,
                "peak_reserved_bytes": record.peak.reserved,
            },
        )


def _name(message: gpu_pb2.DeviceMemory, device: Device) -> None:
    message.gpu_uuid, message.device_name = device.gpu_uuid, device.name
    message.device_kind = _DEVICE_KINDS[device.kind]


def _fill_now(device: gpu_pb2.DeviceMemory, live: Bytes, source: MemorySource) -> None:
    """The present bytes, and what they leave of the budget, where the message has one, and of the device."""
    device.allocated_bytes, device.reserved_bytes = live.allocated, live.reserved
    source.fill(device)
    own = device.reserved_bytes + device.context_bytes
    if device.device_used_bytes:
        device.other_processes_bytes = max(0, device.device_used_bytes - own)
    rooms = [device.budget_bytes - own] if device.budget_bytes else []
    rooms += [device.device_free_bytes] if device.device_used_bytes else []
    device.headroom_bytes = max(0, min(rooms, default=0))


def _source_of(device: Device) -> MemorySource:
    if device.kind == "cpu":
        return CpuMemorySource()
    from halfreel_runtime.memory_cuda import CudaMemorySource

    return CudaMemorySource(device)
