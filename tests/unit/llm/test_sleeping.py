"""The language model asleep and awake again, alone and behind its engine."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import tiny_llm
import torch

from halfreel.gpu.v1 import gpu_pb2
from halfreel_llm.batch_engine import BatchEngine
from halfreel_llm.checkpoint import Checkpoint
from halfreel_llm.generation import Finished, TextDelta, TextModel, TextRequest
from halfreel_llm.messages import Message
from halfreel_llm.network import Network
from halfreel_llm.replies import merge
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.sleeping import sleeping_model
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_llm.weights import load_model
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import CPU
from halfreel_runtime.engine import EngineState
from halfreel_runtime.errors import Cancelled, WakeFailed
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.sleeper import Sleeper


@pytest.fixture
def own(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> TextModel:
    return tiny_llm.text_model(checkpoint, tokenizer)


@pytest.fixture
def wanted(tokenizer: TextTokenizer) -> TextRequest:
    prompt = tokenizer.encode_chat([Message("user", "a red circle moves over a blue sky")])
    return TextRequest("r-1", tuple(prompt), 30, SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, seed=7))


def written(model: TextModel, request: TextRequest) -> str:
    events = model.generate(request, CancelToken())
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_a_reply_is_the_same_after_a_sleep_and_no_slot_is_believed_to_hold_anything(
    own: TextModel, wanted: TextRequest
) -> None:
    before = written(own, wanted)
    weights = sleeping_model(own)
    assert weights.weight_bytes >= own.network.weight_bytes
    for _ in range(2):
        weights.sleep()
        assert all(each.untyped_storage().nbytes() == 0 for each in own.network.buffers())
        weights.wake()
        *_, finished = own.generate(wanted, CancelToken())
        assert isinstance(finished, Finished)
        assert finished.cached_prompt_token_count == 0
        assert written(own, wanted) == before


def test_weights_that_are_read_anew_give_the_same_reply(
    own: TextModel, checkpoint: Checkpoint, wanted: TextRequest
) -> None:
    before = written(own, wanted)

    def read_anew() -> Network:
        model = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        return Network(model, checkpoint.config.max_position_embeddings)

    weights = sleeping_model(own, read_anew)
    for _ in range(2):
        weights.sleep()
        assert (weights.place, weights.host_bytes) == ("reload", 0)
        weights.wake()
        assert written(own, wanted) == before


class Served:
    def __init__(self, model: TextModel) -> None:
        self.memory = MemoryMonitor(CPU)
        self.sleeper = Sleeper(self.memory)
        self.engine = BatchEngine(name="llm", max_waiting_count=20, gate=self.sleeper)
        self.weights = sleeping_model(model)
        self.model = model

    def load(self) -> None:
        self.engine.use(self.model.batch)
        self.sleeper.model_loaded(self.weights)

    async def write(self, request: TextRequest) -> str:
        text = ""
        async for event in self.engine.write(request, merge=merge):
            if isinstance(event, TextDelta):
                text += event.text
        return text

    async def sleep(self) -> None:
        def steps(token: CancelToken) -> Any:
            self.sleeper.sleep()
            yield from ()

        async for _ in self.engine.run(steps, needs_model=False):
            pass


@pytest.fixture
async def served(own: TextModel) -> AsyncIterator[Served]:
    served = Served(own)
    served.engine.start(served.load)
    async with asyncio.timeout(30):
        while served.engine.state is not EngineState.SERVING:
            await asyncio.sleep(0.005)
    yield served
    assert await asyncio.to_thread(served.engine.close)


def numbered(request: TextRequest, seed: int) -> TextRequest:
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, seed=seed))


async def test_requests_wake_the_model_and_sleep_waits_for_running_ones(served: Served, wanted: TextRequest) -> None:
    before = [await served.write(numbered(wanted, seed)) for seed in range(4)]
    writing = [asyncio.create_task(served.write(numbered(wanted, seed))) for seed in range(4)]
    async with asyncio.timeout(30):
        while served.engine.running_count == 0:
            await asyncio.sleep(0.001)
    sleeping = asyncio.create_task(served.sleep())
    assert [await each for each in writing] == before
    await sleeping
    assert served.memory.model_state == gpu_pb2.MODEL_STATE_ASLEEP
    again = await asyncio.gather(*(served.write(numbered(wanted, seed)) for seed in range(4)))
    assert again == before
    assert served.memory.model_state == gpu_pb2.MODEL_STATE_AWAKE


async def test_all_who_wait_hear_that_it_could_not_be_woken_and_may_ask_again(
    served: Served, wanted: TextRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await served.write(wanted)
    await served.sleep()
    wake = served.weights.wake

    def fails() -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(served.weights, "wake", fails)
    results = await asyncio.gather(*(served.write(wanted) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, WakeFailed) for each in results)
    assert served.engine.state is EngineState.WAKE_FAILED
    monkeypatch.setattr(served.weights, "wake", wake)
    assert await served.write(wanted) == before
    assert served.engine.state is EngineState.SERVING


async def test_who_comes_while_a_wake_is_given_up_is_served(
    served: Served, wanted: TextRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await served.write(wanted)
    await served.sleep()  # else the next one may join the batch of this one, past the gate
    enter, at_gate, give_up = served.sleeper.enter, threading.Event(), threading.Event()

    def gives_up(_: Callable[[], bool]) -> None:
        monkeypatch.setattr(served.sleeper, "enter", enter)
        at_gate.set()
        assert give_up.wait(30)
        raise Cancelled("The model is not wanted any more.")

    monkeypatch.setattr(served.sleeper, "enter", gives_up)
    gone = asyncio.create_task(served.write(wanted))
    assert await asyncio.to_thread(at_gate.wait, 30)
    gone.cancel()
    comes = asyncio.create_task(served.write(wanted))
    async with asyncio.timeout(30):
        while not gone.done() or served.engine.waiting_count != 1:
            await asyncio.sleep(0.001)
    give_up.set()
    assert await comes == before


async def test_a_batch_takes_nobody_more_while_it_is_anothers_turn(
    served: Served, wanted: TextRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    turn_is_over = False
    leave = served.sleeper.leave

    def left(has_waiting: bool) -> None:
        nonlocal turn_is_over
        events.append(f"left, {has_waiting}")
        turn_is_over = False
        leave(has_waiting)

    monkeypatch.setattr(served.sleeper, "leave", left)
    monkeypatch.setattr(served.sleeper, "yielding", lambda: turn_is_over)

    first = asyncio.create_task(served.write(dataclasses.replace(wanted, max_output_tokens=100)))
    async with asyncio.timeout(30):
        while served.engine.running_count == 0:
            await asyncio.sleep(0.001)
    turn_is_over = True
    second = asyncio.create_task(served.write(wanted))
    async with asyncio.timeout(30):
        while not first.done():
            assert served.engine.running_count <= 1
            await asyncio.sleep(0.0005)
    assert await second
    async with asyncio.timeout(30):
        while len(events) < 2:
            await asyncio.sleep(0.005)
    assert events == ["left, True", "left, False"]
