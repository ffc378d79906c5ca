"""The engine: order, cancel, deadline, bounds, death, drain, watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from halfreel_runtime.cancel import CancelToken, deadline_var
from halfreel_runtime.engine import Engine, EngineState, Queued
from halfreel_runtime.errors import (
    DeadlineExceeded,
    Draining,
    EngineDead,
    FatalError,
    InvalidArgument,
    ModelLoading,
    OutOfMemory,
    QueueFull,
    SlowReader,
)
from halfreel_runtime.logs import request_id_var

Steps = Callable[[CancelToken], Iterator[str]]


@contextlib.asynccontextmanager
async def engine_of(
    *, max_waiting_count: int = 4, max_event_count: int = 1024, stall_s: float = 10.0
) -> AsyncIterator[Engine[str]]:
    engine: Engine[str] = Engine(
        name="test", max_waiting_count=max_waiting_count, max_event_count=max_event_count, stall_s=stall_s
    )
    engine.start(lambda: None)
    await until(lambda: engine.state is EngineState.SERVING)
    yield engine
    assert engine.close()


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def all_of(engine: Engine[str], steps: Steps) -> list[str | Queued]:
    return [event async for event in engine.run(steps)]


def count(number: int) -> Steps:
    return lambda token: iter([str(each) for each in range(number)])


class Gate:
    """A job that runs until it is let go."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        self.token: CancelToken | None = None

    def __call__(self, token: CancelToken) -> Iterator[str]:
        self.token = token
        self.began.set()
        while not self.go.wait(0.005):
            token.raise_if_cancelled()
        yield "done"


@contextlib.asynccontextmanager
async def busy(engine: Engine[str]) -> AsyncIterator[Gate]:
    gate = Gate()
    task = asyncio.create_task(all_of(engine, gate))
    await until(gate.began.is_set)
    yield gate
    gate.go.set()
    with contextlib.suppress(Exception):
        await task


async def test_events_come_in_order_after_queued() -> None:
    async with engine_of() as engine:
        assert await all_of(engine, count(3)) == [Queued(0), "0", "1", "2"]


async def test_jobs_run_one_at_a_time_in_the_order_they_came() -> None:
    ran: list[str] = []
    running = 0

    def job(name: str) -> Steps:
        def steps(token: CancelToken) -> Iterator[str]:
            nonlocal running
            running += 1
            assert running == 1
            ran.append(name)
            yield name
            time.sleep(0.005)
            running -= 1

        return steps

    async with engine_of(max_waiting_count=100) as engine:
        async with busy(engine):
            tasks = [asyncio.create_task(all_of(engine, job(str(each)))) for each in range(50)]
            await until(lambda: engine.waiting_count == 50)
            assert engine.running_count == 1
            assert engine.oldest_wait_s > 0
        results = await asyncio.gather(*tasks)
    assert ran == [str(each) for each in range(50)]
    assert [events[0] for events in results] == [Queued(each) for each in range(50)]
    assert [events[1] for events in results] == ran


async def test_closing_the_iterator_stops_the_job_at_its_next_step() -> None:
    stopped = threading.Event()
    took_s = []

    def steps(token: CancelToken) -> Iterator[str]:
        try:
            while True:
                time.sleep(0.005)
                yield "step"
        finally:
            stopped.set()

    async with engine_of() as engine:
        for _ in range(5):  # others use this machine as well: the quickest tells what the engine does
            stopped.clear()
            async with contextlib.aclosing(engine.run(steps)) as events:
                async for event in events:
                    if event == "step":
                        break
            closed_at = time.monotonic()
            await until(stopped.is_set)
            took_s.append(time.monotonic() - closed_at)
        assert min(took_s) < 0.05
        assert await all_of(engine, count(1)) == [Queued(0), "0"]


async def test_a_dropped_iterator_stops_the_job_too() -> None:
    async with engine_of() as engine:
        gate = Gate()

        async def read_one() -> None:
            async for _ in engine.run(gate):
                await until(gate.began.is_set)
                break

        await read_one()
        await until(lambda: engine.running_count == 0)
        assert gate.token is not None
        assert gate.token.cancelled


async def test_cancelling_the_task_cancels_the_job() -> None:
    async with engine_of() as engine:
        gate = Gate()
        task = asyncio.create_task(all_of(engine, gate))
        await until(gate.began.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.running_count == 0)


async def test_a_job_cancelled_in_the_queue_leaves_it_and_never_starts() -> None:
    started = False

    def steps(token: CancelToken) -> Iterator[str]:
        nonlocal started
        started = True
        yield "never"

    async with engine_of() as engine:
        async with busy(engine):
            task = asyncio.create_task(all_of(engine, steps))
            await until(lambda: engine.waiting_count == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert engine.waiting_count == 0
        await all_of(engine, count(1))
        assert not started


async def test_a_job_whose_deadline_passed_in_the_queue_never_starts() -> None:
    started = False

    def steps(token: CancelToken) -> Iterator[str]:
        nonlocal started
        started = True
        yield "never"

    async def late() -> None:
        deadline_var.set(time.monotonic() + 0.05)
        await all_of(engine, steps)

    async with engine_of() as engine:
        async with busy(engine) as gate:
            task = asyncio.create_task(late())
            await until(lambda: engine.waiting_count == 1)
            await asyncio.sleep(0.1)
            gate.go.set()
            with pytest.raises(DeadlineExceeded):
                await task
        assert not started


async def test_a_deadline_stops_a_running_job_within_one_step() -> None:
    step_count = 0

    def steps(token: CancelToken) -> Iterator[str]:
        nonlocal step_count
        while True:
            time.sleep(0.02)
            step_count += 1
            yield "step"

    async def late() -> None:
        deadline_var.set(time.monotonic() + 0.1)
        await all_of(engine, steps)

    async with engine_of() as engine:
        with pytest.raises(DeadlineExceeded):
            await asyncio.create_task(late())
    assert step_count <= 6


async def test_a_full_queue_refuses_with_counts_and_the_time_to_come_back() -> None:
    def slow(token: CancelToken) -> Iterator[str]:
        time.sleep(2.0)
        yield "slow"

    async with engine_of(max_waiting_count=1) as engine:
        await all_of(engine, slow)
        async with busy(engine):
            waiting = asyncio.create_task(all_of(engine, count(1)))
            await until(lambda: engine.waiting_count == 1)
            with pytest.raises(QueueFull) as raised:
                await all_of(engine, count(1))
            assert raised.value.metadata == {"waiting_request_count": "1", "max_waiting_request_count": "1"}
            assert raised.value.retry_after_s is not None
            assert 1.5 < raised.value.retry_after_s < 20  # a busy machine makes the two seconds longer
        assert await waiting == [Queued(0), "0"]


async def test_no_waiting_at_all_still_serves_an_idle_engine() -> None:
    async with engine_of(max_waiting_count=0) as engine:
        assert await all_of(engine, count(1)) == [Queued(0), "0"]
        async with busy(engine):
            with pytest.raises(QueueFull):
                await all_of(engine, count(1))


async def test_a_reader_that_does_not_read_is_dropped_and_the_next_is_served() -> None:
    async with engine_of(max_event_count=8) as engine:
        slow = engine.run(count(1000))
        assert await anext(slow) == Queued(0)
        await until(lambda: engine.waiting_count == 0 and engine.running_count == 0)
        with pytest.raises(SlowReader) as raised:
            await anext(slow)
        assert raised.value.metadata == {"max_event_count": "8"}
        assert await all_of(engine, count(2)) == [Queued(0), "0", "1"]


async def test_events_that_wait_unread_are_merged() -> None:
    def merge(unread: str, new: str) -> str | None:
        return unread + new if len(unread) < 4 else None

    async with engine_of(max_event_count=8) as engine:
        events = engine.run(count(10), merge=merge)
        assert await anext(events) == Queued(0)
        await until(lambda: engine.running_count == 0 and engine.waiting_count == 0)
        await asyncio.sleep(0.02)
        assert [event async for event in events] == ["0123", "4567", "89"]


async def test_a_failed_job_harms_nobody_else() -> None:
    def steps(token: CancelToken) -> Iterator[str]:
        yield "one"
        raise InvalidArgument("width_px is 3")

    def broken(token: CancelToken) -> Iterator[str]:
        raise ValueError("a bug")

    async with engine_of() as engine:
        with pytest.raises(InvalidArgument):
            await all_of(engine, steps)
        with pytest.raises(ValueError, match="a bug"):
            await all_of(engine, broken)
        assert await all_of(engine, count(1)) == [Queued(0), "0"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "allocator", "cublas", "cpu"],
)
async def test_out_of_memory_is_the_requests_failure(error: Exception) -> None:
    def steps(token: CancelToken) -> Iterator[str]:
        raise error

    async with engine_of() as engine:
        with pytest.raises(OutOfMemory):
            await all_of(engine, steps)
        assert engine.state is EngineState.SERVING


async def test_the_real_error_of_torchs_allocator_is_known() -> None:
    torch = pytest.importorskip("torch")

    def steps(token: CancelToken) -> Iterator[str]:
        torch.empty(2**55)
        yield "never"

    async with engine_of() as engine:
        with pytest.raises(OutOfMemory):
            await all_of(engine, steps)


@pytest.mark.parametrize(
    "error", [FatalError("weights are broken"), RuntimeError("CUDA error: an illegal memory access was encountered")]
)
async def test_a_fatal_error_ends_the_engine_and_tells_everybody(error: Exception) -> None:
    go = threading.Event()

    def steps(token: CancelToken) -> Iterator[str]:
        go.wait(5)
        raise error

    states: list[EngineState] = []
    async with engine_of() as engine:
        engine.on_state(states.append)
        jobs = [asyncio.create_task(all_of(engine, steps)), asyncio.create_task(all_of(engine, count(1)))]
        await until(lambda: engine.waiting_count == 1)
        go.set()
        for job in jobs:
            with pytest.raises(EngineDead):
                await job
        await until(lambda: engine.state is EngineState.DEAD)
        with pytest.raises(EngineDead):
            await all_of(engine, count(1))
    assert states == [EngineState.SERVING, EngineState.DEAD]


async def test_a_model_that_does_not_load_leaves_a_dead_engine() -> None:
    engine: Engine[str] = Engine(name="test", max_waiting_count=1)
    with pytest.raises(ModelLoading):
        await all_of(engine, count(1))

    def prepare() -> None:
        raise InvalidArgument("the folder holds no safetensors")

    engine.start(prepare)
    await until(lambda: engine.state is EngineState.DEAD)
    with pytest.raises(EngineDead):
        engine.require_serving()
    assert engine.close()


class Tensor:
    """Stands for what a job holds on the device."""


async def test_a_failed_jobs_locals_are_freed_before_anybody_collects() -> None:
    held: list[weakref.ref[Tensor]] = []

    def inner(tensor: Tensor) -> None:
        local = tensor
        raise ValueError("a bug", id(local))

    def steps(token: CancelToken) -> Iterator[str]:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        yield "one"
        inner(tensor)

    async with engine_of() as engine:
        gc.disable()
        try:
            with pytest.raises(ValueError, match="a bug") as raised:
                await all_of(engine, steps)
            await until(lambda: engine.running_count == 0)
            assert held[0]() is None
            assert "inner" in str(raised.traceback[-1]), "the traceback can still be shown"
        finally:
            gc.enable()


async def test_nothing_of_a_finished_job_is_kept() -> None:
    request = Tensor()
    kept = weakref.ref(request)

    async def once(request: Tensor) -> None:
        def steps(token: CancelToken) -> Iterator[str]:
            yield str(id(request))

        await all_of(engine, steps)

    async with engine_of() as engine:
        await once(request)
        await until(lambda: engine.running_count == 0)
        del request
        assert kept() is None


async def test_draining_finishes_what_runs_and_what_waits() -> None:
    def slow(token: CancelToken) -> Iterator[str]:
        time.sleep(0.5)
        yield "slow"

    async with engine_of() as engine:
        tasks = [asyncio.create_task(all_of(engine, slow)) for _ in range(2)]
        await until(lambda: engine.waiting_count == 1)
        draining = asyncio.create_task(engine.drain(5.0))
        await asyncio.sleep(0.01)
        assert engine.state is EngineState.DRAINING
        with pytest.raises(Draining):
            await all_of(engine, slow)
        await draining
        assert [(await task)[1:] for task in tasks] == [["slow"], ["slow"]]


async def test_draining_ends_what_is_left_after_the_grace() -> None:
    async with engine_of() as engine:
        gate = Gate()
        tasks = [asyncio.create_task(all_of(engine, gate)), asyncio.create_task(all_of(engine, count(1)))]
        await until(lambda: engine.waiting_count == 1)
        await engine.drain(0.05)
        for task in tasks:
            with pytest.raises(Draining):
                await task
        await until(lambda: engine.running_count == 0)


async def test_a_closed_engine_takes_nothing() -> None:
    async with engine_of() as engine:
        assert engine.close()
        with pytest.raises(Draining):
            await all_of(engine, count(1))


async def test_a_hung_job_is_noticed_and_its_client_told() -> None:
    go = threading.Event()

    def hang(token: CancelToken) -> Iterator[str]:
        go.wait(30)
        yield "late"

    async with engine_of(stall_s=0.2) as engine:
        began = time.monotonic()
        with pytest.raises(EngineDead):
            await all_of(engine, hang)
        assert 0.15 < time.monotonic() - began < 10  # long before the job would have ended
        assert engine.state is EngineState.DEAD
        go.set()


async def test_progress_keeps_the_watchdog_quiet_and_loading_is_not_watched() -> None:
    def steps(token: CancelToken) -> Iterator[str]:
        for _ in range(6):
            time.sleep(0.55)
            token.beat()
        yield "done"

    # So long that a busy neighbour, who may take the cores for two seconds, is no stall.
    engine: Engine[str] = Engine(name="test", max_waiting_count=1, stall_s=3)
    engine.start(lambda: time.sleep(3.2))
    await until(lambda: engine.state is EngineState.SERVING)
    assert await all_of(engine, steps) == [Queued(0), "done"]
    assert engine.close()


async def test_a_slow_step_is_not_a_hung_one_once_steps_are_known_to_be_slow() -> None:
    def steps(step_s: float, step_count: int) -> Steps:
        def run(token: CancelToken) -> Iterator[str]:
            for _ in range(step_count):
                time.sleep(step_s)
                yield "step"

        return run

    async with engine_of(stall_s=3) as engine:  # as above
        await all_of(engine, steps(0.3, 3))
        assert await all_of(engine, steps(3.4, 1)) == [Queued(0), "step"]


async def test_a_job_knows_its_request() -> None:
    async with engine_of() as engine:
        request_id_var.set("r-1")

        def steps(token: CancelToken) -> Iterator[str]:
            yield request_id_var.get()

        assert await all_of(engine, steps) == [Queued(0), "r-1"]


async def test_an_idle_engine_costs_nothing() -> None:
    async with engine_of() as engine:
        await all_of(engine, count(1))
        took_s = []
        for _ in range(3):
            began = time.process_time()
            await asyncio.sleep(0.5)
            took_s.append(time.process_time() - began)
        assert min(took_s) < 0.02


async def test_many_clients_that_come_and_go_leave_no_trace() -> None:
    async with engine_of(max_waiting_count=300) as engine:
        tasks = [asyncio.create_task(all_of(engine, count(5))) for _ in range(200)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for index, result in enumerate(results):
            if isinstance(result, asyncio.CancelledError):
                assert index % 3 == 0
            else:
                assert isinstance(result, list)
                assert result[1:] == ["0", "1", "2", "3", "4"]
        await until(lambda: engine.waiting_count == 0 and engine.running_count == 0)
