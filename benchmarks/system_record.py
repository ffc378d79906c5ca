"""What a card and its servers held while a film was made, and what the film was at: samples, marks, figures.

It does not know how the servers are started, nor what is asked of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime import nvml

GIB = 2**30
SAMPLE_S, ASK_S = 0.01, 0.2
KINDS = {pb.SERVER_KIND_LLM: "llm", pb.SERVER_KIND_VIDEO: "video"}
# Of the servers' logs, what tells of memory and of turns.
_EVENTS = ("model_asleep", "model_awake", "wake_failed", "sleep_failed", "sleep_kept_memory", "weights_not_pinned")
_LEVELS = ("warning", "error", "critical")
# The log has a sample where the card's figure has changed by so much, or at least so often.
_LOGGED_BYTES, _LOGGED_S = 16 * 2**20, 1.0


class Record:
    """One film's samples and marks; times are seconds since it was made.

    Args:
        card_gib: the card that is tried.
        cap_bytes: what may be used of it.
        gpu_uuid: the card that is sampled; without one, the resident bytes of `pids`.
    """

    def __init__(self, card_gib: int, cap_bytes: int, gpu_uuid: str) -> None:
        self.card_gib, self.cap_bytes = card_gib, cap_bytes
        self._began = time.monotonic()
        self._gpu = nvml.Gpu(gpu_uuid) if gpu_uuid else None
        self.pids: list[int] = []
        self.baseline_bytes = (self._used() or 0) if gpu_uuid else 0
        self.samples: list[tuple[float, int]] = []
        self.marks: list[tuple[float, str, str]] = []
        self.states: list[dict[str, Any]] = []
        self._log_lines: list[str] = []

    def now_s(self) -> float:
        """Seconds since the record began."""
        return time.monotonic() - self._began

    def mark(self, kind: str, text: str) -> None:
        """Notes what the film is at now."""
        self.marks.append((round(self.now_s(), 3), kind, text))

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Samples the card until the block ends."""
        with _every(SAMPLE_S, self._sample):
            yield

    @contextlib.contextmanager
    def asking(self, stub: Any) -> Iterator[None]:
        """Asks both servers, through the gateway, for their memory until the block ends."""

        def ask() -> None:
            with contextlib.suppress(grpc.RpcError):  # one that is busy is asked again
                told = stub.MemoryStatus(pb.MemoryStatusRequest(), timeout=5)
                at_s = round(self.now_s(), 3)
                for server in told.servers:
                    for device in server.report.devices:
                        self.states.append({"at_s": at_s, "server": KINDS[server.kind], **_told(server.report, device)})

        with _every(ASK_S, ask):
            yield

    def take_logs(self, folder: Path) -> None:
        """Keeps what the servers' logs have of memory, turns and trouble."""
        for path in sorted(folder.glob("*.log")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if said["event"] in _EVENTS or said["level"] in _LEVELS:
                        self._log_lines.append(line)

    def figures(self) -> dict[str, Any]:
        """The peak, over all and in each part of the film, and what each server took of it."""
        times = [at_s for at_s, _ in self.samples]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        figures: dict[str, Any] = {
            "device_peak_gib": self._peak_gib(0.0, float("inf")),
            "peaks_gib": self.peaks_gib(),
            "baseline_gib": round(self.baseline_bytes / GIB, 3),
            "samples": len(self.samples),
            "sample_gap_max_ms": round(1e3 * max(gaps, default=0.0), 1),
            "sample_gap_mean_ms": round(1e3 * sum(gaps) / len(gaps), 2) if gaps else None,
            "marks": [mark for mark in self.marks if mark[1] != "stage"],
        }
        for name in KINDS.values():
            rows = [row for row in self.states if row["server"] == name]
            figures[name] = {
                "process_peak_gib": max((row["process_peak_gib"] for row in rows), default=None),
                "context_gib": max((row["context_gib"] for row in rows), default=None),
                "asleep_reserved_gib": max(
                    (row["reserved_gib"] for row in rows if row["state"] == "asleep"), default=None
                ),
                "states": _changes(rows),
            }
        return figures

    def peaks_gib(self) -> dict[str, float | None]:
        """The peak of each part: the starts, the script, the scenes, and joining."""
        begun = {text: at_s for at_s, kind, text in reversed(self.marks) if kind == "film"}
        ends = {"starts": "ready", "script": "rendering", "scenes": "joining", "joining": ""}
        begin_s, peaks = 0.0, {}
        for part, end in ends.items():
            end_s = begun.get(end, float("inf"))
            peaks[part] = self._peak_gib(begin_s, end_s)
            begin_s = end_s
        return peaks

    def lines(self) -> Iterator[str]:
        """The raw log: one JSON object a line."""
        kept_s, kept_bytes = float("-inf"), 0
        for at_s, used in self.samples:
            if abs(used - kept_bytes) >= _LOGGED_BYTES or at_s - kept_s >= _LOGGED_S:
                kept_s, kept_bytes = at_s, used
                yield json.dumps({"card_gib": self.card_gib, "at_s": round(at_s, 3), "used_bytes": used})
        for at_s, kind, text in self.marks:
            yield json.dumps({"card_gib": self.card_gib, "at_s": at_s, "mark": kind, "text": text})
        for row in self.states:
            yield json.dumps({"card_gib": self.card_gib, **row})
        yield from self._log_lines

    def _peak_gib(self, begin_s: float, end_s: float) -> float | None:
        peak = max((used for at_s, used in self.samples if begin_s <= at_s <= end_s), default=None)
        return None if peak is None else round(peak / GIB, 3)

    def _sample(self) -> None:
        if (used := self._used()) is not None:
            self.samples.append((self.now_s(), used - self.baseline_bytes))

    def _used(self) -> int | None:
        if self._gpu is not None:
            memory = self._gpu.memory()
            return None if memory is None else memory.used
        used = 0
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                used += int(psutil.Process(pid).memory_info().rss)
        return used


def _told(report: Any, device: Any) -> dict[str, Any]:
    return {
        "state": gpu_pb2.ModelState.Name(report.model_state).removeprefix("MODEL_STATE_").lower(),
        "phase": device.current_phase,
        "reserved_gib": round(device.reserved_bytes / GIB, 3),
        "context_gib": round(device.context_bytes / GIB, 3),
        "process_peak_gib": round(device.process_peak.reserved_bytes / GIB, 3),
        "others_gib": round(device.other_processes_bytes / GIB, 3),
    }


def _changes(rows: list[dict[str, Any]]) -> list[tuple[float, str]]:
    changes: list[tuple[float, str]] = []
    for row in rows:
        if not changes or changes[-1][1] != row["state"]:
            changes.append((row["at_s"], row["state"]))
    return changes


@contextlib.contextmanager
def _every(interval_s: float, work: Any) -> Iterator[None]:
    ended = threading.Event()

    def run() -> None:
        due = time.monotonic()
        while not ended.wait(max(0.0, due - time.monotonic())):
            work()
            due = max(due + interval_s, time.monotonic())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)
