"""Runs that were recorded on a real card, replayed on the simulated one: it holds what the real one held."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_source import Bytes
from halfreel_runtime.suggestions import MemoryLimits
from halfreel_runtime.testing.allocation_trace import AllocationTrace, read_trace
from halfreel_runtime.testing.allocator import OutOfMemoryError, SimulatedAllocator
from halfreel_runtime.testing.card import SimulatedCard
from halfreel_runtime.testing.source import SimulatedSource, simulated_device

TRACES = sorted((Path(__file__).parents[2] / "traces").glob("*.trace.gz"))
GIB = 2**30


@pytest.fixture(scope="module", params=TRACES, ids=[path.name for path in TRACES])
def trace(request: pytest.FixtureRequest) -> AllocationTrace:
    return read_trace(request.param)


def test_there_are_traces() -> None:
    assert TRACES


def test_peaks_are_those_of_the_card(trace: AllocationTrace) -> None:
    allocator = SimulatedAllocator(SimulatedCard(80 * GIB), expandable=trace.expandable)
    peaks = trace.replay(allocator)
    assert trace.recorded.keys() <= peaks.keys()
    for phase, recorded in trace.recorded.items():
        assert peaks[phase].allocated == recorded.allocated, phase  # to the byte
        assert peaks[phase].reserved == pytest.approx(recorded.reserved, rel=0.02), phase


def test_large_tensors_lie_where_they_lay_on_the_card(trace: AllocationTrace) -> None:
    """Ids are the card's addresses: seen from the first, every tensor above 1 MiB has the same place on both."""
    allocator = SimulatedAllocator(SimulatedCard(80 * GIB), expandable=trace.expandable)
    places: dict[int, int] = {}
    offsets = set()
    count = 0
    for event in trace.events:
        if event.op == "a":
            places[event.id] = allocator.allocate(event.bytes)
            if event.bytes > 2**20 and event.id > 0:
                offsets.add(places[event.id] - event.id)
                count += 1
        elif event.op == "f":
            allocator.free(places.pop(event.id))
        else:
            allocator.empty_cache()
    assert count > 1000
    assert len(offsets) == 1


def test_without_expandable_segments_the_same_run_takes_more(trace: AllocationTrace) -> None:
    peaks = trace.replay(SimulatedAllocator(SimulatedCard(80 * GIB), expandable=False))
    for phase, recorded in trace.recorded.items():
        # A large block is not split for 1 MiB or less, and counts whole.
        assert peaks[phase].allocated == pytest.approx(recorded.allocated, rel=0.02)
    assert max(peak.reserved for peak in peaks.values()) > max(peak.reserved for peak in trace.recorded.values())


def test_it_runs_on_a_card_with_room_for_its_peak_and_not_on_a_smaller_one(trace: AllocationTrace) -> None:
    largest = max(trace.recorded.values(), key=lambda peak: peak.reserved)
    card = SimulatedCard(largest.reserved + GIB // 2 + 2**26)
    trace.replay(SimulatedAllocator(card, expandable=trace.expandable, context_bytes=GIB // 2))
    live = max(peak.allocated for peak in trace.recorded.values())
    with pytest.raises(OutOfMemoryError):
        trace.replay(SimulatedAllocator(SimulatedCard(live - 2**20), expandable=trace.expandable))


def test_the_monitor_tells_of_a_replayed_run_what_the_card_told(trace: AllocationTrace) -> None:
    """Phase by phase through the monitor, as a server's engine does it; the card is nearly full meanwhile."""
    largest = max(trace.recorded.values(), key=lambda peak: peak.reserved)
    card = SimulatedCard(largest.reserved + GIB)
    allocator = SimulatedAllocator(card, expandable=trace.expandable, context_bytes=GIB // 2)
    limits = MemoryLimits(warn_ratio=0.5)
    monitor = MemoryMonitor(simulated_device(), limits=limits, source=SimulatedSource(allocator))
    phases: dict[str, list[int]] = {}
    for index, event in enumerate(trace.events):
        phases.setdefault(event.phase, []).append(index)
    places: dict[int, int] = {}
    with monitor.request("r") as request:
        for phase, indices in phases.items():
            with monitor.phase(phase or "before"):
                part = AllocationTrace([trace.events[each] for each in indices])
                part.replay(allocator, places)
    told = {each.phase: each.peak for each in request.phase_peaks}
    for phase, recorded in trace.recorded.items():
        assert Bytes(told[phase].allocated_bytes, 0) == Bytes(recorded.allocated, 0)
        assert told[phase].reserved_bytes == pytest.approx(recorded.reserved, rel=0.02)
    report = monitor.report()
    assert report.devices[0].device_kind == gpu_pb2.DEVICE_KIND_CUDA
    assert report.devices[0].request_peak.reserved_bytes == max(peak.reserved_bytes for peak in told.values())
    cached = monitor.live().reserved - monitor.live().allocated
    assert {each.code: each.saved_bytes for each in report.suggestions}.get("clear_memory", 0) in (0, cached)
    assert monitor.clear() > 0
