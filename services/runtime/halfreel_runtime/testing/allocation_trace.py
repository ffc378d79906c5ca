"""What a process allocated and freed, in order, and what its allocator then held: recorded once, replayed anywhere.

A trace is a file of JSON lines, packed by gzip. The first is an object that says where it comes from:

    {"format": "halfreel-allocations", "version": 1, "what": "SVD-XT, 25 frames ...", "card": "NVIDIA H200",
     "torch": "2.11.0", "expandable": true, "recorded": {"denoise": {"allocated_bytes": 1, "reserved_bytes": 2}, ...}}

where `recorded` has the peaks of every phase as the card had them. Every other line is one event:

    [op, id, bytes, phase]

`op` is "a" (a tensor was made: `bytes` as they were asked for), "f" (the tensor `id` is gone), or "e" (the cache was
emptied; `id` and `bytes` are 0). `id` names a tensor from its "a" to its "f", and may be used again after. `phase` is
the phase that ran, "" outside of any.

It does not know torch: `events_of_snapshot` takes what torch's recorder writes as plain values.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from halfreel_runtime.memory_source import Bytes
from halfreel_runtime.testing.allocator import SimulatedAllocator

FORMAT, VERSION = "halfreel-allocations", 1
# Allocations up to this come from the pool of small ones.
_LARGEST_SMALL = 2**20
# Segments that are further apart have addresses of their own.
_OTHER_ADDRESSES = 64 * 2**30


class Event(NamedTuple):
    """One line of a trace."""

    op: str
    id: int
    bytes: int
    phase: str


class Mark(NamedTuple):
    """What torch's recorder does not know: when a phase began, in microseconds since 1970."""

    time_us: int
    phase: str | None  # None says nothing: an emptied cache is seen by the memory that it gives back


@dataclass(frozen=True)
class AllocationTrace:
    """A recorded run.

    Attributes:
        events: in order.
        recorded: the peaks of each phase on the card that it was recorded on.
        expandable: whether that was with expandable segments.
        about: where it comes from: what, card, torch.
    """

    events: Sequence[Event]
    recorded: Mapping[str, Bytes] = field(default_factory=dict)
    expandable: bool = True
    about: Mapping[str, str] = field(default_factory=dict)

    def replay(self, allocator: SimulatedAllocator, places: dict[int, int] | None = None) -> dict[str, Bytes]:
        """Does on an allocator what was recorded; returns the peaks of each phase.

        Args:
            allocator: of the process that runs.
            places: where the tensors lie that are there already, by their ids; kept up to date, for the next part.

        Raises:
            OutOfMemoryError: its card is smaller than what the run needs.
        """
        peaks: dict[str, Bytes] = {}
        addresses = places if places is not None else {}
        phase = None
        for event in self.events:
            if event.phase != phase:
                phase = event.phase
                allocator.reset_peak()
            if event.op == "a":
                addresses[event.id] = allocator.allocate(event.bytes)
            elif event.op == "f":
                allocator.free(addresses.pop(event.id))
            else:
                allocator.empty_cache()
            peaks[event.phase] = peaks.get(event.phase, Bytes()).max(allocator.peak)
        return peaks


def write_trace(trace: AllocationTrace, path: Path) -> None:
    """Writes a trace; the same trace is the same bytes."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        **trace.about,
        "expandable": trace.expandable,
        "recorded": {
            phase: {"allocated_bytes": peak.allocated, "reserved_bytes": peak.reserved}
            for phase, peak in trace.recorded.items()
        },
    }
    lines = [json.dumps(head), *(json.dumps(event, separators=(",", ":")) for event in trace.events)]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def read_trace(path: Path) -> AllocationTrace:
    """Reads a trace.

    Raises:
        ValueError: it is none, or one of another version.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        head = json.loads(next(file, "null"))
        if not isinstance(head, dict) or (head.get("format"), head.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"{path.name} is no {FORMAT} file of version {VERSION}")
        events = [Event(*json.loads(line)) for line in file]
    recorded = {
        phase: Bytes(peak["allocated_bytes"], peak["reserved_bytes"]) for phase, peak in head.pop("recorded").items()
    }
    expandable = bool(head.pop("expandable"))
    about = {name: value for name, value in head.items() if name not in ("format", "version")}
    return AllocationTrace(events, recorded, expandable, about)


def events_of_snapshot(
    entries: Iterable[Mapping[str, Any]], marks: Iterable[Mark] = (), segments: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Event]:
    """The events of what torch's recorder wrote.

    Args:
        entries: `torch.cuda.memory._snapshot()["device_traces"][index]`, recorded by
            `torch.cuda.memory._record_memory_history(context=None)`.
        marks: phases, in the order of their times.
        segments: `torch.cuda.memory._snapshot()["segments"]` just before, where something was allocated already.
    """
    waiting = list(marks)[::-1]
    phase, emptying = "", False
    live: dict[int, int] = {}
    for event in _start(segments):
        if event.op == "a" and event.id >= 0:
            live[event.id] = event.bytes
        yield event
    for entry in entries:
        while waiting and waiting[-1].time_us <= entry["time_us"]:
            phase = waiting.pop().phase or phase
        action, address = entry["action"], entry["addr"]
        gives_back = action in ("segment_unmap", "segment_free")
        if gives_back and not emptying:
            yield Event("e", 0, 0, phase)
        emptying = gives_back
        if action == "alloc":
            live[address] = entry["size"]
            yield Event("a", address, entry["size"], phase)
        elif action == "free_completed" and address in live:
            yield Event("f", address, live.pop(address), phase)


def _start(segments: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    """What was there before, each tensor at its place: what lies between them is filled, and freed once all are there.

    Ids of the filling are below zero.
    """
    filling: list[Event] = []

    def fill(size: int, *, small: bool) -> Iterator[Event]:
        for piece in _pieces(size, small=small):
            filling.append(Event("a", -1 - len(filling), piece, ""))
            yield filling[-1]

    for kind in ("small", "large"):
        of_kind = [each for each in segments if each["segment_type"] == kind]
        end = 0
        for segment in sorted(of_kind, key=lambda each: int(each["address"])):
            address = segment["address"]
            if end and address - end < _OTHER_ADDRESSES:
                yield from fill(address - end, small=kind == "small")
            for block in segment["blocks"]:
                if block["state"] == "active_allocated":
                    yield Event("a", address, block["size"], "")
                else:
                    yield from fill(block["size"], small=kind == "small")
                address += block["size"]
            end = address
    yield from (Event("f", each.id, each.bytes, "") for each in filling)
    if filling:
        yield Event("e", 0, 0, "")


def _pieces(size: int, *, small: bool) -> Iterator[int]:
    """A stretch as allocations from the pool it lies in; none where it is too short for that of large ones."""
    most = _LARGEST_SMALL if small else size
    while size > (0 if small else _LARGEST_SMALL):
        yield min(size, most)
        size -= most
