"""Several requests at once, and figures of time: recent peak, history, headroom, suggestions."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.device import CPU
from halfreel_runtime.history import MemoryHistory, RecentPeak
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_source import Bytes
from halfreel_runtime.suggestions import MemoryLimits

MIB = 2**20


class Counters:
    """A device of 1,000 MiB whose counters the test sets; others hold 100."""

    def __init__(self) -> None:
        self.held = self.peak = Bytes()
        self.others = 100 * MIB
        self.asked = True

    def hold(self, allocated: int, reserved: int | None = None) -> None:
        self.held = Bytes(allocated * MIB, (allocated if reserved is None else reserved) * MIB)
        self.peak = self.peak.max(self.held)

    def spike(self, allocated: int) -> None:
        before = self.held
        self.hold(allocated)
        self.held = before

    def live(self) -> Bytes:
        return self.held

    def window_peak(self) -> Bytes:
        return self.peak

    def reset_window(self) -> None:
        self.peak = self.held

    def watch(self, on: bool) -> None: ...

    def observe(self) -> None: ...

    def fill(self, device: gpu_pb2.DeviceMemory) -> None:
        device.device_total_bytes = 1000 * MIB
        if self.asked:
            device.device_used_bytes = self.others + self.held.reserved
            device.device_free_bytes = 1000 * MIB - device.device_used_bytes

    def release_cached(self) -> None:
        self.held = Bytes(self.held.allocated, self.held.allocated)


@pytest.fixture
def counters() -> Counters:
    return Counters()


def monitor_of(counters: Counters, **options: object) -> MemoryMonitor:
    return MemoryMonitor(CPU, source=counters, **options)  # type: ignore[arg-type]


def mib(phases: list[gpu_pb2.PhasePeak]) -> dict[str, int]:
    return {each.phase: each.peak.reserved_bytes // MIB for each in phases}


def test_a_request_has_the_process_peak_of_its_life_whoever_caused_it(counters: Counters) -> None:
    monitor = monitor_of(counters)
    counters.hold(10)
    first = monitor.begin_request("first")
    counters.spike(30)
    second = monitor.begin_request("second")
    counters.spike(50)
    third = monitor.begin_request("third")
    first.end()
    counters.spike(20)
    second.end()
    third.end()
    counters.spike(90)
    assert [each.peak.reserved_bytes // MIB for each in (first, second, third)] == [50, 50, 20]
    assert monitor.report().devices[0].request_peak == third.peak
    assert monitor.report().devices[0].process_peak.reserved_bytes == 90 * MIB


def test_a_phase_of_all_is_charged_to_those_that_run_and_to_one_that_joins(counters: Counters) -> None:
    monitor = monitor_of(counters)
    early = monitor.begin_request("early")
    with monitor.phase("decode"):
        counters.spike(40)
        late = monitor.begin_request("late")
        with monitor.phase("prefill", of=[late]):
            counters.spike(70)
            time.sleep(0.02)
        counters.spike(50)
        early.end()
        counters.spike(60)
    late.end()
    assert mib(early.phase_peaks) == {"decode": 70}  # its decode goes on while another's prompt is read
    assert mib(late.phase_peaks) == {"prefill": 70, "decode": 60}
    seconds = {each.phase: each.duration.ToTimedelta().total_seconds() for each in late.phase_peaks}
    assert seconds["prefill"] >= 0.02 > seconds["decode"]


def test_phases_that_are_not_nested_keep_apart(counters: Counters) -> None:
    monitor = monitor_of(counters)
    one, two = monitor.begin_request("one"), monitor.begin_request("two")
    of_one, of_two = monitor.phase("denoise", of=[one]), monitor.phase("decode", of=[two])
    of_one.__enter__()
    counters.spike(10)
    of_two.__enter__()
    counters.spike(20)
    of_one.__exit__(None, None, None)
    counters.spike(30)
    of_two.__exit__(None, None, None)
    counters.spike(40)
    assert (mib(one.phase_peaks), mib(two.phase_peaks)) == ({"denoise": 20}, {"decode": 30})
    assert monitor.report().devices[0].current_phase == ""


def test_a_request_that_ended_twice_counts_once_and_stays_as_it_was(counters: Counters) -> None:
    monitor = monitor_of(counters)
    with monitor.request("r") as request, monitor.phase("decode"):
        counters.spike(10)
    counters.spike(99)
    request.end()
    assert request.peak.reserved_bytes == 10 * MIB
    assert mib(request.phase_peaks) == {"decode": 10}


def test_what_a_plan_predicted_stands_beside_what_was_measured(counters: Counters) -> None:
    monitor = monitor_of(counters)
    with monitor.request("r") as request:
        request.predict({"denoise": 41 * MIB})
        with monitor.phase("denoise"):
            counters.spike(40)
        with monitor.phase("decode"):
            pass
    predicted = {each.phase: each.predicted_reserved_bytes for each in request.phase_peaks}
    assert predicted == {"denoise": 41 * MIB, "decode": 0}
    assert monitor.report().devices[0].phase_peaks[0].predicted_reserved_bytes == 41 * MIB


def test_requests_and_phases_from_many_threads_lose_nothing(counters: Counters) -> None:
    monitor = monitor_of(counters)
    seen: list[int] = []

    def work(size: int) -> None:
        for _ in range(50):
            with monitor.request(str(size)) as request, monitor.phase("decode", of=[request]):
                counters.spike(size)
            seen.append(request.peak.reserved_bytes // MIB >= 0)
            monitor.report()

    threads = [threading.Thread(target=work, args=(size,)) for size in (10, 20, 30, 40)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(seen) == 200
    assert monitor.report().devices[0].process_peak.reserved_bytes == 40 * MIB
    assert monitor.report().devices[0].current_phase == ""


def test_the_recent_peak_forgets_after_a_minute() -> None:
    recent = RecentPeak()
    recent.add(1000.2, Bytes(5, 50))
    recent.add(1000.9, Bytes(7, 40))
    recent.add(1030.0, Bytes(1, 10))
    assert recent.peak(1060.5, Bytes(2, 2)) == Bytes(7, 50)
    assert recent.peak(1061.5, Bytes(2, 2)) == Bytes(2, 10)
    assert recent.peak(1200.0, Bytes(2, 2)) == Bytes(2, 2)


def test_the_history_is_bounded_and_in_order(counters: Counters) -> None:
    history = MemoryHistory(kept_count=3)
    for number in range(5):
        history.add(gpu_pb2.MemorySample(allocated_bytes=number))
    assert [each.allocated_bytes for each in history.samples()] == [2, 3, 4]


def test_samples_tell_the_phase_and_end_with_the_monitor(counters: Counters) -> None:
    monitor = monitor_of(counters)
    counters.hold(10, 20)
    others = set(threading.enumerate())  # monitors of other tests keep theirs as long as they live
    monitor.keep_history(interval_s=0.01)
    [sampler] = set(threading.enumerate()) - others
    assert sampler.name == "memory-history"
    with monitor.request("r"), monitor.phase("decode"):
        counters.spike(500)
        time.sleep(0.1)
    samples = monitor.history()
    assert {each.phase for each in samples[-3:]} == {"decode"}
    last = samples[-1]
    assert (last.allocated_bytes, last.reserved_bytes, last.device_used_bytes) == (10 * MIB, 20 * MIB, 120 * MIB)
    assert last.gpu_uuid == "cpu"
    assert monitor.report().devices[0].request_peak.allocated_bytes == 500 * MIB  # no sample took the peak away
    assert monitor.report().devices[0].recent_peak.allocated_bytes == 500 * MIB
    gone = weakref.ref(monitor)
    del monitor
    for _ in range(100):
        gc.collect()
        if gone() is None and not sampler.is_alive():
            break
        time.sleep(0.01)
    assert gone() is None
    assert not sampler.is_alive()


@pytest.mark.parametrize(
    ("budget", "asked", "headroom"),
    [(0, True, 700), (400, True, 200), (990, True, 700), (400, False, 200), (0, False, 0), (150, True, 0)],
)
def test_headroom_is_of_the_budget_or_of_the_device_where_that_has_less(
    counters: Counters, budget: int, asked: bool, headroom: int
) -> None:
    counters.hold(150, 200)
    counters.asked = asked
    device = monitor_of(counters, budget_bytes=budget * MIB).report().devices[0]
    assert device.headroom_bytes == headroom * MIB
    assert device.other_processes_bytes == (100 * MIB if asked else 0)


def codes(report: gpu_pb2.MemoryReport) -> dict[str, int]:
    return {each.code: each.saved_bytes // MIB for each in report.suggestions}


def test_nothing_is_suggested_while_there_is_room(counters: Counters) -> None:
    monitor = monitor_of(counters, limits=MemoryLimits(warn_ratio=0.9, min_free_bytes=100 * MIB))
    counters.hold(100, 790)
    assert codes(monitor.report()) == {}
    counters.hold(100, 800)  # with the others' 100, 900 of 1,000
    assert codes(monitor.report()) == {"clear_memory": 700}
    assert "700 MiB" in monitor.report().suggestions[0].text


def test_less_than_should_stay_free_is_short(counters: Counters) -> None:
    monitor = monitor_of(counters, budget_bytes=300 * MIB, limits=MemoryLimits(min_free_bytes=50 * MIB))
    counters.hold(100, 250)
    assert codes(monitor.report()) == {}
    counters.hold(100, 251)
    monitor.add_suggester(lambda: [gpu_pb2.Suggestion(code="lower_decode_chunk", text="...", saved_bytes=151 * MIB)])
    assert list(codes(monitor.report()).items()) == [
        ("lower_decode_chunk", 151),
        ("clear_memory", 151),
        ("raise_budget", 0),
    ]


def test_where_nothing_is_known_nothing_is_short(counters: Counters) -> None:
    counters.asked = False
    counters.hold(900)
    assert codes(monitor_of(counters, limits=MemoryLimits(0.5, 500 * MIB)).report()) == {}


def test_a_shortage_is_logged_once_as_it_begins(counters: Counters, caplog: pytest.LogCaptureFixture) -> None:
    monitor = monitor_of(counters, limits=MemoryLimits(warn_ratio=0.5))
    counters.hold(600)
    monitor.keep_history(interval_s=0.01)
    time.sleep(0.1)
    counters.hold(10)
    time.sleep(0.1)
    assert [each.message for each in caplog.records] == ["memory_short"]
    counters.hold(600)
    time.sleep(0.1)
    assert [each.message for each in caplog.records] == ["memory_short"] * 2
