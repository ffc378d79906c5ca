"""Memory: peaks per phase, request and process; reports that never wait."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import threading
import time

import pytest

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.device import CPU, find_device
from halfreel_runtime.errors import FailedPrecondition, InvalidArgument
from halfreel_runtime.memory import MemoryMonitor

MIB = 2**20


def touch(size: int, hold_s: float = 0.05) -> None:
    """Takes memory, really, and gives it back: by a mapping, for a heap may have as much that is free and resident."""
    with mmap.mmap(-1, size) as block:
        block[:: mmap.PAGESIZE] = b"x" * len(range(0, size, mmap.PAGESIZE))
        time.sleep(hold_s)


def peaks(phases: list[gpu_pb2.PhasePeak]) -> dict[str, int]:
    return {each.phase: each.peak.reserved_bytes for each in phases}


def device(monitor: MemoryMonitor) -> gpu_pb2.DeviceMemory:
    return monitor.report().devices[0]


def test_a_phase_notices_64_mib_and_the_others_do_not() -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.request("r") as request:
        with monitor.phase("encode"):
            time.sleep(0.02)
        with monitor.phase("denoise"):
            touch(64 * MIB)
        with monitor.phase("decode"):
            time.sleep(0.02)
    seen = peaks(request.phase_peaks)
    assert list(seen) == ["encode", "denoise", "decode"]
    assert seen["denoise"] - seen["encode"] == pytest.approx(64 * MIB, abs=4 * MIB)
    assert seen["denoise"] - seen["decode"] == pytest.approx(64 * MIB, abs=4 * MIB)
    assert request.peak.reserved_bytes == seen["denoise"]
    report = device(monitor)
    assert peaks(list(report.phase_peaks)) == seen
    assert report.request_peak == request.peak
    assert report.process_peak.reserved_bytes >= seen["denoise"]


def test_an_inner_phase_is_charged_alone_and_the_outer_goes_on() -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.request("r") as request, monitor.phase("denoise"):
        time.sleep(0.02)
        with monitor.phase("decode"):
            touch(64 * MIB, 0.1)
        assert device(monitor).current_phase == "denoise"
        time.sleep(0.02)
    seen = peaks(request.phase_peaks)
    assert seen["decode"] - seen["denoise"] > 56 * MIB
    seconds = {each.phase: each.duration.ToTimedelta().total_seconds() for each in request.phase_peaks}
    assert seconds["decode"] >= 0.1
    assert 0.04 <= seconds["denoise"] < seconds["decode"]


def test_a_phase_that_comes_twice_has_one_peak_and_one_sum() -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.request("r") as request:
        for size in (48 * MIB, 8 * MIB):
            with monitor.phase("decode"):
                touch(size)
    [decode] = request.phase_peaks
    assert decode.duration.ToMilliseconds() >= 100
    assert decode.peak.reserved_bytes - device(monitor).reserved_bytes > 40 * MIB


def test_a_request_that_fails_leaves_its_peaks_and_an_idle_monitor() -> None:
    monitor = MemoryMonitor(CPU)
    with pytest.raises(ValueError, match="broken"), monitor.request("r") as request, monitor.phase("decode"):
        touch(32 * MIB)
        raise ValueError("broken")
    assert peaks(request.phase_peaks)["decode"] - device(monitor).reserved_bytes > 24 * MIB
    assert device(monitor).current_phase == ""


def test_each_request_has_its_own_peak_and_the_last_one_is_shown() -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.phase("load"):
        touch(16 * MIB)
    with monitor.request("big") as big, monitor.phase("decode"):
        touch(64 * MIB)
    with monitor.request("small") as small, monitor.phase("decode"):
        touch(MIB)
    assert big.peak.reserved_bytes - small.peak.reserved_bytes > 48 * MIB
    report = device(monitor)
    assert report.request_peak == small.peak
    assert peaks(list(report.phase_peaks))["decode"] == small.peak.reserved_bytes
    assert "load" in peaks(list(report.phase_peaks))
    assert report.process_peak.reserved_bytes >= big.peak.reserved_bytes


def test_a_running_phase_is_seen_from_outside() -> None:
    monitor = MemoryMonitor(CPU)
    inside, go = threading.Event(), threading.Event()

    def work() -> None:
        with monitor.request("r"), monitor.phase("denoise"):
            touch(64 * MIB)
            inside.set()
            go.wait(5)

    worker = threading.Thread(target=work)
    worker.start()
    assert inside.wait(5)
    report = device(monitor)
    assert report.current_phase == "denoise"
    assert peaks(list(report.phase_peaks))["denoise"] - report.reserved_bytes > 48 * MIB
    assert report.request_peak.reserved_bytes == peaks(list(report.phase_peaks))["denoise"]
    go.set()
    worker.join()


def test_reset_sets_the_peaks_to_the_present() -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.request("r"), monitor.phase("decode"):
        touch(64 * MIB)
    before = device(monitor)
    monitor.reset_peaks()
    after = device(monitor)
    assert before.process_peak.reserved_bytes - after.process_peak.reserved_bytes > 48 * MIB
    assert peaks(list(after.phase_peaks))["decode"] == pytest.approx(after.reserved_bytes, abs=4 * MIB)


def test_a_report_takes_under_a_millisecond_while_phases_turn() -> None:
    monitor = MemoryMonitor(CPU)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with monitor.request("r"), monitor.phase("denoise"):
                time.sleep(0.001)

    worker = threading.Thread(target=work)
    worker.start()
    medians = []
    for _ in range(5):  # others use this machine as well: the quietest window tells what a report takes
        seconds = []
        for _ in range(100):
            began = time.perf_counter()
            monitor.report()
            seconds.append(time.perf_counter() - began)
        medians.append(sorted(seconds)[50])
    stop.set()
    worker.join()
    assert min(medians) < 0.001


def test_an_idle_monitor_samples_nothing() -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.phase("load"):
        pass
    time.sleep(0.05)
    began = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - began < 0.02


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps what was freed")
def test_clearing_gives_back_what_was_freed_between_things_that_live() -> None:
    monitor = MemoryMonitor(CPU)
    blocks = [bytearray(60_000) for _ in range(2000)]  # too small for mappings of their own: they lie in the heap
    living = blocks[::50]  # so that no end of the heap comes free, which free() would give back by itself
    del blocks
    before = device(monitor).reserved_bytes
    freed = monitor.clear()
    assert freed > 100 * MIB
    assert before - device(monitor).reserved_bytes == pytest.approx(freed, abs=4 * MIB)
    assert {len(each) for each in living} == {60_000}


def test_the_report_names_the_device_and_the_host() -> None:
    report = MemoryMonitor(CPU, budget_bytes=123).report()
    [only] = report.devices
    assert (only.gpu_uuid, only.device_kind, only.budget_bytes) == ("cpu", gpu_pb2.DEVICE_KIND_CPU, 123)
    assert only.device_name
    assert only.context_bytes == 0
    assert only.device_total_bytes == report.host.total_bytes
    assert only.device_used_bytes + only.device_free_bytes == only.device_total_bytes
    assert 0 < report.host.process_resident_bytes <= report.host.process_peak_resident_bytes
    assert abs(report.read_time.ToSeconds() - time.time()) < 5


@pytest.mark.parametrize("spec", ["gpu", "cuda:x", "cuda:-1", "", "GPU", "cuda: 1"])
def test_a_device_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(InvalidArgument, match="must be auto, cpu, cuda:N, GPU-uuid or MIG-uuid"):
        find_device(spec)


@pytest.mark.parametrize("spec", ["cuda:99", "GPU-00000000-0000-0000-0000-000000000000"])
def test_a_device_that_is_not_there_is_named(spec: str) -> None:
    with pytest.raises(FailedPrecondition, match="this machine has"):
        find_device(spec)


def test_the_cpu_is_found() -> None:
    assert find_device("cpu") == CPU
    assert find_device("cpu").torch_name == "cpu"


def test_nothing_of_the_runtime_imports_torch_without_a_gpu() -> None:
    modules = "boundary cancel checks device engine errors events failures job logs memory memory_cpu memory_service "
    modules += "metrics metrics_http nvml server server_settings settings startup watchdog"
    code = "import sys\n" + "".join(f"import halfreel_runtime.{name}\n" for name in modules.split())
    code += "from halfreel_runtime.memory import MemoryMonitor\nfrom halfreel_runtime.device import find_device\n"
    code += "MemoryMonitor(find_device('cpu')).report()\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)
