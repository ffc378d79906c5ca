"""Spare time is spent piece by piece between jobs, while the model is awake, and never while a job is there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.engine import Engine
from halfreel_runtime.gate import OpenGate
from halfreel_video.spare_time import SpareTime


class Watched(OpenGate):
    """A gate that notes who asked it what."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.look_s: float | None = None

    def enter(self, wanted: object) -> None:
        self.asked.append("enter")

    def leave(self, has_waiting: bool) -> None:
        self.asked.append("leave")

    def idle(self) -> None:
        self.asked.append("idle")


def test_the_other_gate_comes_first_and_pieces_are_done_until_there_are_none() -> None:
    inner, awake, left = Watched(), [True], [3]
    gate = SpareTime(inner, lambda: awake[0])

    def piece() -> bool:
        inner.asked.append("piece")
        left[0] -= 1
        return left[0] > 0

    assert gate.look_s is None
    gate.spend(piece)
    assert gate.look_s == 0.01
    inner.look_s = 0.001
    assert gate.look_s == 0.001
    inner.look_s = None
    gate.enter(lambda: True)
    gate.leave(has_waiting=True)
    awake[0] = False  # nothing is done to a model that sleeps
    gate.leave(has_waiting=False)
    gate.idle()
    assert gate.look_s is None
    awake[0] = True
    gate.idle()
    gate.idle()
    assert gate.look_s is None
    gate.idle()
    assert inner.asked == ["enter", "leave", "piece", "leave", "idle", "idle", "piece", "idle", "piece", "idle"]
    assert (gate.wake_failed, gate.yielding()) == (False, False)


async def test_an_engine_has_its_pieces_done_and_serves_between_them() -> None:
    pieces, may_go_on, first_done = [], threading.Event(), asyncio.Event()
    loop, gate = asyncio.get_running_loop(), SpareTime(OpenGate(), lambda: True)
    engine: Engine[int] = Engine(name="test", max_waiting_count=2, gate=gate)

    def piece() -> bool:
        pieces.append(threading.current_thread().name)
        if len(pieces) == 1:
            loop.call_soon_threadsafe(first_done.set)
            assert may_go_on.wait(30)
        return len(pieces) < 5

    def job(_: CancelToken) -> Iterator[int]:
        yield len(pieces)

    engine.start(lambda: gate.spend(piece))
    try:
        await asyncio.wait_for(first_done.wait(), 30)
        waiting = asyncio.ensure_future(collect(engine, job))
        while not engine.waiting_count:
            await asyncio.sleep(0)
        may_go_on.set()
        # It came while a piece was done, and waited for that one alone.
        assert await asyncio.wait_for(waiting, 30) <= 2
        while len(pieces) < 5:
            await asyncio.sleep(0.01)
        assert set(pieces) == {"test"}
    finally:
        may_go_on.set()
        assert engine.close()


async def collect(engine: Engine[int], job: object) -> int:
    return [event async for event in engine.run(job)][-1]  # type: ignore[arg-type, return-value]  # the last is the job's


def test_work_that_can_not_be_done_now_is_looked_at_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, now, told = Watched(), [100.0], [None, True, False]
    monkeypatch.setattr("halfreel_video.spare_time.time.monotonic", lambda: now[0])
    gate = SpareTime(inner, lambda: True)
    gate.spend(lambda: told.pop(0))
    gate.idle()
    assert gate.look_s == 1.0
    gate.idle()
    assert len(told) == 2
    now[0] += 1.0
    assert gate.look_s == 0.01
    gate.idle()
    assert gate.look_s == 0.01
    gate.idle()
    assert (told, gate.look_s) == ([], None)
