"""Sleep and wake through the whole server: told to, idle, failing, and what others hear of it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import time
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from small_server import LLM, MIB, WEIGHT_BYTES, Running, SmallModel, order, small_server

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.engine import EngineState
from halfreel_runtime.errors import RemoteError, error_from_status
from halfreel_runtime.settings import ModelServerSettings
from halfreel_runtime.sleeper import Sleeper

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def text_of(running: Running, words: str) -> str:
    deltas = [response.text_delta.text async for response in running.llm.Generate(order(words))]
    return "".join(deltas)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def state(running: Running) -> gpu_pb2.ModelState.ValueType:
    async for response in running.memory.WatchMemory(gpu_pb2.WatchMemoryRequest()):
        return response.report.model_state
    raise AssertionError


async def health(running: Running) -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=LLM))).status)


def model_of(running: Running) -> SmallModel:
    assert running.servicer.model is not None
    return running.servicer.model


@contextlib.asynccontextmanager
async def running_with(**settings: object) -> AsyncIterator[Running]:
    server, servicer = small_server(ModelServerSettings(**settings))  # type: ignore[arg-type]
    await server.start()
    servicer.engine.start(servicer.load)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        await until(lambda: servicer.engine.state is EngineState.SERVING)
        yield Running(server, servicer, channel)
        await server.stop(0)
    assert servicer.engine.close()


async def test_sleep_gives_the_memory_back_and_a_request_wakes_the_model(running: Running) -> None:
    before = await text_of(running, "recite")
    assert await state(running) == gpu_pb2.MODEL_STATE_AWAKE
    await running.memory.ClearMemory(gpu_pb2.ClearMemoryRequest())  # what this process has freed is no part of it
    slept = await running.memory.Sleep(gpu_pb2.SleepRequest())
    assert slept.freed_bytes == pytest.approx(WEIGHT_BYTES, abs=2 * MIB)
    assert slept.duration.ToNanoseconds() > 0
    assert slept.report.model_state == gpu_pb2.MODEL_STATE_ASLEEP
    assert model_of(running).weights is None
    assert await health(running) == SERVING
    assert await text_of(running, "recite") == before
    assert await state(running) == gpu_pb2.MODEL_STATE_AWAKE


async def test_sleep_and_wake_a_second_time_change_nothing(running: Running) -> None:
    await running.memory.Sleep(gpu_pb2.SleepRequest())
    again = await running.memory.Sleep(gpu_pb2.SleepRequest())
    assert (again.freed_bytes, again.duration.ToNanoseconds()) == (0, 0)
    first = await running.memory.Wake(gpu_pb2.WakeRequest())
    second = await running.memory.Wake(gpu_pb2.WakeRequest())
    assert first.duration.ToNanoseconds() > 0 == second.duration.ToNanoseconds()
    assert second.report.model_state == gpu_pb2.MODEL_STATE_AWAKE


async def test_sleep_waits_for_the_running_request_and_waiting_ones_wake_it_again(running: Running) -> None:
    first = asyncio.create_task(text_of(running, "sleep 0.02 10"))
    await until(lambda: running.servicer.step_count > 0)
    sleep = running.memory.Sleep(gpu_pb2.SleepRequest())
    await until(lambda: running.servicer.engine.waiting_count == 1)
    last = asyncio.create_task(text_of(running, "recite"))
    assert await first == "0123456789"
    assert (await sleep).freed_bytes > 0
    assert (await last).startswith("weight")


async def test_clearing_does_not_wake(running: Running) -> None:
    await running.memory.Sleep(gpu_pb2.SleepRequest())
    await running.memory.ClearMemory(gpu_pb2.ClearMemoryRequest())
    assert await state(running) == gpu_pb2.MODEL_STATE_ASLEEP


async def remote_error(call: object) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return error_from_status(caught.value)


async def test_a_wake_that_fails_is_told_and_can_be_tried_again(running: Running) -> None:
    await running.memory.Sleep(gpu_pb2.SleepRequest())
    model_of(running).wakes_fail = 2
    failed = await remote_error(text_of(running, "recite"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "WAKE_FAILED")
    assert failed.metadata["needed_bytes"] == str(WEIGHT_BYTES)
    assert failed.retry_after_s
    assert await state(running) == gpu_pb2.MODEL_STATE_WAKE_FAILED
    await until(lambda: running.servicer.engine.state is EngineState.WAKE_FAILED)
    assert await health(running) == NOT_SERVING
    failed = await remote_error(running.memory.Wake(gpu_pb2.WakeRequest()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert await text_of(running, "recite") == "weight" * 4
    assert running.servicer.engine.state is EngineState.SERVING
    async with asyncio.timeout(20):
        while await health(running) != SERVING:
            await asyncio.sleep(0.01)


async def test_a_model_that_could_not_wake_is_tried_again_though_nobody_asks(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfreel_runtime.sleeper._TRY_AGAIN_S", 0.1)
    await running.memory.Sleep(gpu_pb2.SleepRequest())
    model_of(running).wakes_fail = 3
    await remote_error(text_of(running, "recite"))
    await until(lambda: running.servicer.engine.state is EngineState.SERVING)
    assert model_of(running).wakes_fail == 0
    assert await text_of(running, "recite") == "weight" * 4


async def test_a_device_that_fails_while_waking_ends_the_engine(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    await running.memory.Sleep(gpu_pb2.SleepRequest())
    monkeypatch.setattr(model_of(running), "wake", broken)
    failed = await remote_error(text_of(running, "recite"))
    assert failed.reason == "ENGINE_DEAD"
    await until(lambda: running.servicer.engine.state is EngineState.DEAD)


async def test_a_sleep_that_fails_leaves_the_model_awake(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_of(running), "sleep", full)
    failed = await remote_error(running.memory.Sleep(gpu_pb2.SleepRequest()))
    assert failed.code is grpc.StatusCode.INTERNAL
    assert await state(running) == gpu_pb2.MODEL_STATE_AWAKE
    assert await text_of(running, "recite") == "weight" * 4


async def test_the_watchdog_does_not_watch_a_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_with(stall_s=3) as running:  # Sleep, which is watched, took over 0.8 s on a busy machine
        await running.memory.Sleep(gpu_pb2.SleepRequest())
        model, wake = model_of(running), model_of(running).wake
        monkeypatch.setattr(model, "wake", lambda: (time.sleep(4.5), wake()))
        waking = asyncio.create_task(text_of(running, "recite"))
        await asyncio.sleep(0.3)
        assert await state(running) == gpu_pb2.MODEL_STATE_WAKING
        assert await waking == "weight" * 4


async def test_a_model_nobody_asks_for_goes_to_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_with(idle_sleep_s=0.3) as running:
        model, sleep, slept_at = model_of(running), model_of(running).sleep, []
        assert model.prepared
        monkeypatch.setattr(model, "sleep", lambda: (slept_at.append(time.monotonic()), sleep()))
        began = time.monotonic()
        await text_of(running, "sleep 0.1 5")  # longer than it may be idle: a request at work is no idleness
        await until(lambda: any(each > began for each in slept_at))
        # By the clock of the engine's thread: on a busy machine we may come too late to see it awake.
        assert all(each < began or each >= began + 0.1 * 5 + 0.3 for each in slept_at)
        await until(lambda: running.servicer.memory.model_state == gpu_pb2.MODEL_STATE_ASLEEP)
        assert await text_of(running, "recite") == "weight" * 4
        await until(lambda: running.servicer.memory.model_state == gpu_pb2.MODEL_STATE_ASLEEP)


async def test_history_comes_with_the_first_report_alone_and_only_where_asked_for(running: Running) -> None:
    await asyncio.sleep(1.2)
    request = gpu_pb2.WatchMemoryRequest(include_history=True)
    request.interval.FromMilliseconds(100)
    counts = []
    async for response in running.memory.WatchMemory(request):
        counts.append(len(response.history))
        if len(counts) == 3:
            break
    assert counts[0] >= 1
    assert counts[1:] == [0, 0]
    async for response in running.memory.WatchMemory(gpu_pb2.WatchMemoryRequest()):
        assert not response.history
        break


async def test_memory_is_cleared_before_and_after_where_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        async with running_with(clear_memory_before=before, clear_memory_after=after) as running:
            cleared: list[str] = []
            monkeypatch.setattr(running.servicer.memory, "clear", lambda seen=cleared: seen.append("x") or 0)
            await text_of(running, "count 1")
            await until(lambda: running.servicer.engine.running_count == 0)
            await until(lambda seen=cleared, count=before + after: len(seen) >= count)  # type: ignore[misc]
            await asyncio.sleep(0.02)
            assert len(cleared) == before + after


class ScatteredModel:
    """Weights in small pieces of the heap, between things that live on: free() gives nothing of them back by itself."""

    def __init__(self) -> None:
        pieces = [bytearray(60_000) for _ in range(1500)]
        self.living, self.weights = pieces[::50], [each for number, each in enumerate(pieces) if number % 50]
        self.weight_bytes = 60_000 * len(self.weights)

    def prepare_sleep(self) -> None: ...

    def sleep(self) -> None:
        self.weights.clear()

    def wake(self) -> None: ...


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps what was freed")
def test_sleep_gives_back_what_lay_between_things_that_live(running_memory: Sleeper) -> None:
    model = ScatteredModel()
    running_memory.model_loaded(model)
    running_memory._memory.clear()  # what this process has freed before is no part of it
    moved = running_memory.sleep()
    assert moved.freed_bytes > 0.95 * model.weight_bytes
    assert len(model.living) == 30


def test_a_sleeper_without_a_model_has_nothing_to_do(running_memory: Sleeper) -> None:
    assert running_memory.sleep().freed_bytes == 0
    running_memory.wake()
    assert running_memory.state == gpu_pb2.MODEL_STATE_LOADING


@pytest.fixture
def running_memory() -> Sleeper:
    from halfreel_runtime.device import CPU
    from halfreel_runtime.memory import MemoryMonitor

    return Sleeper(MemoryMonitor(CPU))
