"""The simulated card: sums worked out by hand, the monitor on top of it, and traces."""

from __future__ import annotations

import gzip
import itertools
import random
from pathlib import Path

import pytest

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.errors import OutOfMemory
from halfreel_runtime.failures import engine_error
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_source import Bytes
from halfreel_runtime.testing.allocation_trace import (
    AllocationTrace,
    Event,
    Mark,
    events_of_snapshot,
    read_trace,
    write_trace,
)
from halfreel_runtime.testing.allocator import OutOfMemoryError, SimulatedAllocator
from halfreel_runtime.testing.card import SimulatedCard
from halfreel_runtime.testing.source import SimulatedSource, simulated_device

KIB, MIB, GIB = 2**10, 2**20, 2**30


def allocator_of(capacity: int = GIB, *, expandable: bool, **options: int) -> SimulatedAllocator:
    return SimulatedAllocator(SimulatedCard(capacity), expandable=expandable, **options)


def live(allocator: SimulatedAllocator) -> tuple[float, float]:
    """Allocated and reserved, in MiB."""
    return allocator.live.allocated / MIB, allocator.live.reserved / MIB


@pytest.mark.parametrize(
    ("size", "allocated", "fixed", "expandable"),
    [
        (1, 512, 2 * MIB, 2 * MIB),
        (513, 1024, 2 * MIB, 2 * MIB),
        (MIB, MIB, 2 * MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB, 20 * MIB),
        (33 * MIB + 1, 33 * MIB + 512, 34 * MIB, 40 * MIB),
    ],
)
def test_one_tensor(size: int, allocated: int, fixed: int, expandable: int) -> None:
    allocator = allocator_of(expandable=True)
    allocator.allocate(size)
    assert allocator.live == Bytes(allocated, expandable)
    allocator = allocator_of(expandable=False)
    allocator.allocate(size)
    # A segment of fixed size is not split for a rest of 1 MiB or less: the tensor has all of it.
    rest = fixed - allocated
    whole = size > MIB and rest <= MIB
    assert allocator.live == Bytes(fixed if whole else allocated, fixed)


def test_fixed_segments_that_fit_nothing_pile_up() -> None:
    allocator = allocator_of(expandable=False)
    for size in (30, 40, 50):  # each is too large for what the one before has left
        allocator.free(allocator.allocate(size * MIB))
    assert live(allocator) == (0, 120)
    allocator.free(allocator.allocate(35 * MIB))  # the smallest that is large enough
    assert live(allocator) == (0, 120)
    allocator.empty_cache()
    assert live(allocator) == (0, 0)


def test_expandable_segments_grow_in_place() -> None:
    allocator = allocator_of(expandable=True)
    for size in (30, 40, 50):
        allocator.free(allocator.allocate(size * MIB))
    assert live(allocator) == (0, 60)
    allocator.empty_cache()
    assert live(allocator) == (0, 0)


def test_a_free_block_is_split_and_joined_again() -> None:
    for expandable in (False, True):
        allocator = allocator_of(expandable=expandable)
        first = allocator.allocate(20 * MIB)
        allocator.free(first)
        parts = [allocator.allocate(5 * MIB) for _ in range(4)]
        assert live(allocator) == (20, 20)
        for each in (parts[1], parts[3], parts[0], parts[2]):
            allocator.free(each)
        assert allocator.allocate(20 * MIB) == first
        assert live(allocator) == (20, 20)


def test_a_hole_is_not_given_back_while_its_segment_is_used() -> None:
    allocator = allocator_of(expandable=False)
    first, second = allocator.allocate(5 * MIB), allocator.allocate(5 * MIB)
    allocator.free(first)
    allocator.empty_cache()
    assert live(allocator) == (5, 20)
    allocator.free(second)
    allocator.empty_cache()
    assert live(allocator) == (0, 0)


def test_whole_granules_of_a_hole_are_given_back_and_filled_again() -> None:
    allocator = allocator_of(expandable=True)
    first = allocator.allocate(70 * MIB)
    second = allocator.allocate(10 * MIB)
    assert live(allocator) == (80, 80)
    allocator.free(first)
    allocator.empty_cache()
    assert live(allocator) == (10, 20)  # three granules of 20 MiB go; the fourth has the second tensor's begin in it
    assert allocator.allocate(70 * MIB) == first
    assert live(allocator) == (80, 80)
    allocator.free(second)
    assert live(allocator) == (70, 80)


def test_the_small_and_the_large_do_not_mix() -> None:
    allocator = allocator_of(expandable=True)
    small = [allocator.allocate(512 * KIB) for _ in range(5)]
    assert live(allocator) == (2.5, 4)
    large = allocator.allocate(2 * MIB)
    assert live(allocator) == (4.5, 24)
    for each in (*small, large):
        allocator.free(each)
    assert live(allocator) == (0, 24)
    assert allocator.peak == Bytes(int(4.5 * MIB), 24 * MIB)


def test_of_expandable_blocks_that_which_can_grow_least_is_taken() -> None:
    allocator = allocator_of(expandable=True)
    hole = allocator.allocate(30 * MIB)
    allocator.allocate(10 * MIB)
    last = allocator.allocate(20 * MIB)  # the addresses behind it are free
    allocator.free(hole)
    allocator.free(last)
    assert allocator.allocate(15 * MIB) == hole  # although the last block is smaller


def test_a_full_card_is_told_in_torchs_words_and_leaves_all_as_it_was() -> None:
    allocator = allocator_of(100 * MIB, expandable=True)
    kept = allocator.allocate(60 * MIB)
    with pytest.raises(OutOfMemoryError, match=r"Tried to allocate 0\.0\d GiB") as caught:
        allocator.allocate(50 * MIB)
    assert isinstance(engine_error(caught.value), OutOfMemory)
    assert allocator.live.allocated == 60 * MIB
    allocator.free(kept)
    allocator.free(allocator.allocate(100 * MIB))


def test_what_is_cached_makes_room_before_a_card_counts_as_full() -> None:
    allocator = allocator_of(100 * MIB, expandable=False)
    allocator.free(allocator.allocate(60 * MIB))
    allocator.allocate(80 * MIB)
    assert live(allocator) == (80, 80)


def test_two_processes_share_a_card_and_the_end_of_one_makes_room() -> None:
    card = SimulatedCard(100 * MIB, others_bytes=10 * MIB)
    one = SimulatedAllocator(card, context_bytes=5 * MIB)
    two = SimulatedAllocator(card, context_bytes=5 * MIB)
    one.allocate(40 * MIB)
    assert card.free_bytes == 40 * MIB
    with pytest.raises(OutOfMemoryError):
        two.allocate(45 * MIB)
    one.end()
    two.allocate(60 * MIB)
    assert card.used_bytes == 75 * MIB
    with pytest.raises(OutOfMemoryError):
        SimulatedAllocator(card, context_bytes=30 * MIB)


def test_a_limit_is_kept_though_the_card_has_room() -> None:
    allocator = allocator_of(expandable=True, limit_bytes=60 * MIB)
    allocator.allocate(50 * MIB)
    with pytest.raises(OutOfMemoryError):
        allocator.allocate(20 * MIB)
    allocator.allocate(10 * MIB)


@pytest.mark.parametrize("expandable", [False, True])
def test_ten_thousand_random_steps_keep_the_books(expandable: bool) -> None:
    dice = random.Random(3)
    card = SimulatedCard(2 * GIB)
    allocator = SimulatedAllocator(card, expandable=expandable)
    tensors: dict[int, int] = {}
    for _ in range(10_000):
        if tensors and dice.random() < 0.5:
            address = dice.choice(list(tensors))
            del tensors[address]
            allocator.free(address)
        elif dice.random() < 0.01:
            allocator.empty_cache()
        else:
            size = int(2 ** dice.uniform(6, 27))
            address = allocator.allocate(size)
            assert address not in tensors
            tensors[address] = size
        assert sum(tensors.values()) <= allocator.live.allocated <= allocator.live.reserved == card.used_bytes
    stretches = sorted(tensors.items())
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(stretches))
    for address in list(tensors):
        allocator.free(address)
    allocator.empty_cache()
    assert (allocator.live, card.used_bytes) == (Bytes(), 0)


def test_the_monitor_reads_it_as_it_reads_a_gpu() -> None:
    card = SimulatedCard(16 * GIB, others_bytes=GIB)
    allocator = SimulatedAllocator(card, context_bytes=GIB // 2)
    source = SimulatedSource(allocator)
    monitor = MemoryMonitor(simulated_device(), budget_bytes=8 * GIB, source=source)
    with monitor.phase("load"):
        allocator.allocate(2 * GIB)
    with monitor.request("r") as request:
        with monitor.phase("denoise"):
            allocator.free(allocator.allocate(4 * GIB))
        with monitor.phase("decode"):
            allocator.free(allocator.allocate(GIB))
    # Expandable segments come in granules of 20 MiB: 2 GiB take 103 of them, 6 GiB 308.
    large = 308 * 20 * MIB
    peaks = {each.phase: (each.peak.allocated_bytes, each.peak.reserved_bytes) for each in request.phase_peaks}
    assert peaks == {"denoise": (6 * GIB, large), "decode": (3 * GIB, large)}
    device = monitor.report().devices[0]
    assert (device.device_total_bytes, device.other_processes_bytes) == (16 * GIB, GIB)
    assert device.headroom_bytes == 8 * GIB - large - GIB // 2
    assert monitor.clear() == large - 103 * 20 * MIB
    source.nvml = False  # the driver fails in the middle: what it tells is absent, the allocator's figures go on
    device = monitor.report().devices[0]
    assert (device.device_used_bytes, device.device_free_bytes, device.other_processes_bytes) == (0, 0, 0)
    assert device.allocated_bytes == 2 * GIB
    assert device.device_kind == gpu_pb2.DEVICE_KIND_CUDA


def test_a_trace_is_written_and_read_as_it_is_and_replays_to_the_same_peaks(tmp_path: Path) -> None:
    events = [
        Event("a", 1, 30 * MIB, "load"),
        Event("a", 2, 40 * MIB, "denoise"),
        Event("f", 2, 40 * MIB, "denoise"),
        Event("a", 2, 50 * MIB, "denoise"),
        Event("f", 2, 50 * MIB, "decode"),
        Event("e", 0, 0, "decode"),
        Event("a", 3, MIB, "decode"),
    ]
    recorded = {"load": Bytes(30 * MIB, 40 * MIB)}
    trace = AllocationTrace(events, recorded, expandable=True, about={"what": "a test", "card": "none"})
    write_trace(trace, tmp_path / "one.jsonl.gz")
    write_trace(trace, tmp_path / "two.jsonl.gz")
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    again = read_trace(tmp_path / "one.jsonl.gz")
    assert again == trace
    peaks = again.replay(allocator_of(expandable=again.expandable))
    assert peaks == {
        "load": Bytes(30 * MIB, 40 * MIB),
        "denoise": Bytes(80 * MIB, 80 * MIB),
        "decode": Bytes(80 * MIB, 80 * MIB),
    }
    with pytest.raises(OutOfMemoryError):
        again.replay(allocator_of(70 * MIB, expandable=True))


@pytest.mark.parametrize(
    "content", ['{"format": "other", "version": 1}', "[]", "", '{"format": "halfreel-allocations"}']
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "trace.gz").write_bytes(gzip.compress(content.encode()))
    with pytest.raises(ValueError, match="is no halfreel-allocations file"):
        read_trace(tmp_path / "trace.gz")


def test_torchs_recorder_becomes_events_with_phases() -> None:
    segments = [
        {
            "address": 100,
            "segment_type": "small",
            "blocks": [
                {"size": 512, "state": "active_allocated"},
                {"size": 1024, "state": "inactive"},
                {"size": 2048, "state": "active_allocated"},
            ],
        }
    ]
    entries = [
        {"action": "free_completed", "addr": 99, "size": 512, "time_us": 5},  # nobody knows of what
        {"action": "free_completed", "addr": 1636, "size": 2000, "time_us": 6},
        {"action": "segment_map", "addr": 0, "size": 20 * MIB, "time_us": 10},
        {"action": "alloc", "addr": 7, "size": 1000, "time_us": 10},
        {"action": "free_requested", "addr": 7, "size": 1000, "time_us": 20},
        {"action": "free_completed", "addr": 7, "size": 1000, "time_us": 20},
        {"action": "segment_unmap", "addr": 0, "size": 20 * MIB, "time_us": 30},
        {"action": "segment_unmap", "addr": 50, "size": 20 * MIB, "time_us": 30},
        {"action": "alloc", "addr": 7, "size": 2000, "time_us": 40},
    ]
    marks = [Mark(9, "load"), Mark(15, "denoise"), Mark(30, None), Mark(35, "decode")]
    assert list(events_of_snapshot(entries, marks, segments)) == [
        Event("a", 100, 512, ""),
        Event("a", -1, 1024, ""),
        Event("a", 1636, 2048, ""),
        Event("f", -1, 1024, ""),
        Event("e", 0, 0, ""),
        Event("f", 1636, 2048, ""),
        Event("a", 7, 1000, "load"),
        Event("f", 7, 1000, "denoise"),
        Event("e", 0, 0, "denoise"),
        Event("a", 7, 2000, "decode"),
    ]


def test_what_was_there_before_lies_at_its_places() -> None:
    large = {"segment_type": "large"}
    segments = [
        {"address": 7000 * MIB, **large, "blocks": [{"size": 32 * MIB, "state": "active_allocated"}]},
        {
            "address": 4000 * MIB,
            **large,
            "blocks": [
                {"size": 12 * MIB, "state": "inactive"},
                {"size": 8 * MIB, "state": "active_allocated"},
            ],
        },
    ]
    trace = AllocationTrace(list(events_of_snapshot([], (), segments)))
    allocator, places = allocator_of(8 * GIB, expandable=True), {}
    trace.replay(allocator, places)
    assert places == {4012 * MIB: 12 * MIB, 7000 * MIB: 3000 * MIB}
    assert live(allocator) == (40, 60)  # two granules of 20 MiB for the 32 MiB at 3,000, and one for the 8 at 12
