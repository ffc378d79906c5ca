"""Readers are woken once a step, and none is forgotten."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from halfreel_llm.wakes import StepEvents, Wakes
from halfreel_runtime.errors import EngineDead


async def test_readers_hear_of_all_that_a_step_put_with_one_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    wakes, loop = Wakes(), asyncio.get_running_loop()
    buffers = [StepEvents[int](100, None, wakes) for _ in range(5)]
    reading = [asyncio.create_task(buffer.get()) for buffer in buffers]
    await asyncio.sleep(0)
    calls: list[Any] = []
    real = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *each: (calls.append(each), real(*each))[1])

    def step() -> None:
        with wakes:
            for number, buffer in enumerate(buffers):
                buffer.put(number)
                buffer.put(number + 10)
                buffer.end()
            assert not calls

    thread = threading.Thread(target=step)
    thread.start()
    assert await asyncio.gather(*reading) == [0, 1, 2, 3, 4]
    thread.join()
    assert len(calls) == 1
    for number, buffer in enumerate(buffers):
        assert [await buffer.get(), await buffer.get()] == [number + 10, None]


async def test_an_end_told_by_another_thread_does_not_wait_for_the_step() -> None:
    wakes = Wakes()
    buffer = StepEvents[int](100, None, wakes)
    put, over = threading.Event(), threading.Event()

    def hanging_step() -> None:
        with wakes:
            buffer.put(1)
            put.set()
            over.wait(30)

    thread = threading.Thread(target=hanging_step)
    thread.start()
    await asyncio.to_thread(put.wait)
    assert await asyncio.wait_for(buffer.get(), 30) == 1
    reading = asyncio.create_task(buffer.get())
    await asyncio.sleep(0)
    await asyncio.to_thread(buffer.end, EngineDead("the engine failed"))
    with pytest.raises(EngineDead):
        await asyncio.wait_for(reading, 30)
    over.set()
    thread.join()


async def test_outside_of_a_step_a_reader_is_woken_at_once() -> None:
    buffer = StepEvents[int](100, None, Wakes())
    reading = asyncio.create_task(buffer.get())
    await asyncio.sleep(0)
    await asyncio.to_thread(buffer.put, 3)
    assert await asyncio.wait_for(reading, 30) == 3
