"""Replies written together: what company changes, and what it must not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import plain_kernels
import pytest
import tiny_llm
import torch

from halfreel_llm import place
from halfreel_llm.batch import Batch
from halfreel_llm.checkpoint import Checkpoint
from halfreel_llm.fused_network import FusedNetwork
from halfreel_llm.generation import Finished, FinishReason, TextDelta, TextModel, TextRequest
from halfreel_llm.graph_runner import PIECE_TOKENS, GraphRunner
from halfreel_llm.kv_cache import KvCache
from halfreel_llm.messages import Message
from halfreel_llm.runner import GuessChecker
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.schema import SchemaCompiler
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import CPU
from halfreel_runtime.errors import Cancelled, OutOfMemory, SlowReader
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_source import Bytes

SLOT_COUNT = 4
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, seed=0)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"narration": {"type": "string", "maxLength": 9}, "seconds": {"enum": [2, 4]}},
        "required": ["narration", "seconds"],
        "additionalProperties": False,
    }
)


class Reading:
    """Reads one reply."""

    def __init__(self, token: CancelToken | None = None) -> None:
        self.token = token or CancelToken()
        self.text = ""
        self.token_count = 0
        self.finished: Finished | None = None
        self.error: BaseException | None = None
        self.ended = False
        self.message_count = 0

    def put(self, event: TextDelta) -> None:
        assert not self.ended
        assert event.text
        self.text += event.text
        self.token_count += event.token_count
        self.message_count += 1

    def end(self, finished: Finished | None, error: BaseException | None) -> None:
        assert not self.ended
        self.ended, self.finished, self.error = True, finished, error


def graphs_of(model: TextModel, tokenizer: TextTokenizer, piece_tokens: int = PIECE_TOKENS) -> Batch:
    """The batch of a GPU, its kernels in PyTorch's words, its steps not captured."""
    network = model.network
    cache = KvCache(network.shape, SLOT_COUNT + 1, tiny_llm.CONTEXT_TOKEN_COUNT, device=model.device, dtype=model.dtype)
    allowed = torch.zeros(network.shape.vocabulary_size, dtype=torch.bool)
    allowed[sorted(tokenizer.text_ids | tokenizer.stop_ids)] = True
    fused = FusedNetwork(network, plain_kernels)
    runner = GraphRunner(
        fused, cache, allowed, plain_kernels, graphs=False, processor_count=8, piece_tokens=piece_tokens
    )
    return Batch(runner, tokenizer, network.shape.vocabulary_size, MemoryMonitor(CPU))


@pytest.fixture(params=["eager", "graphs", "graphs of small pieces", "graphs that never mix"])
def batch(request: Any, checkpoint: Checkpoint, tokenizer: TextTokenizer) -> Iterator[Batch]:
    model = tiny_llm.text_model(checkpoint, tokenizer, SLOT_COUNT)
    if request.param == "eager":
        chosen = model.batch
    else:
        chosen = graphs_of(model, tokenizer, 16 if request.param == "graphs of small pieces" else PIECE_TOKENS)
        if request.param == "graphs that never mix":
            chosen._runner.mixes = lambda *_: False  # type: ignore[method-assign]  # as where a stopwatch said so
    with chosen.session():
        yield chosen


@pytest.fixture(scope="module")
def compiler(tokenizer: TextTokenizer) -> Iterator[SchemaCompiler]:
    schemas = SchemaCompiler(tokenizer.grammar_tokenizer(tiny_llm.VOCABULARY_SIZE), tokenizer.reply_leads)
    yield schemas
    schemas.close()


def request_of(
    tokenizer: TextTokenizer, text: str, length: int = 40, sampling: SamplingSettings = GREEDY
) -> TextRequest:
    return TextRequest("r", tuple(tokenizer.encode_chat([Message("user", text)])), length, sampling)


def written_alone(model: TextModel, request: TextRequest) -> str:
    events = list(model.generate(request, CancelToken()))
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def written(batch: Batch, requests: list[TextRequest], every: int = 3) -> list[Reading]:
    """Writes all, one joining every few steps as soon as a slot is free."""
    waiting, readings = list(requests), []
    step = 0
    while waiting or batch.running_count:
        if waiting and batch.running_count < batch.slot_count and step % every == 0:
            readings.append(Reading())
            batch.admit(waiting.pop(0), readings[-1])
        batch.step()
        step += 1
    assert all(reading.ended for reading in readings)
    return readings


def test_greedy_replies_are_the_same_alone_and_in_any_company(
    batch: Batch, text_model: TextModel, tokenizer: TextTokenizer
) -> None:
    requests = [
        request_of(tokenizer, f"{number} red circles over " * (number + 1), 5 + 7 * number) for number in range(9)
    ]
    readings = written(batch, requests)
    for request, reading in zip(requests, readings, strict=True):
        assert reading.text == written_alone(text_model, request)
        assert reading.finished is not None
        assert 0 < reading.token_count <= reading.finished.output_token_count <= request.max_output_tokens


def test_a_seed_gives_the_same_text_alone_and_in_company(
    batch: Batch, text_model: TextModel, tokenizer: TextTokenizer
) -> None:
    settings = [
        SamplingSettings(temperature=0.7 + number / 5, top_p=(1.0, 0.9)[number % 2], top_k=number % 3 * 20, seed=number)
        for number in range(8)
    ]
    requests = [request_of(tokenizer, "a yellow star rises", 30, each) for each in settings]
    texts = [reading.text for reading in written(batch, requests)]
    assert texts == [written_alone(text_model, request) for request in requests]
    assert len(set(texts)) == len(texts)


async def test_replies_under_a_schema_and_free_ones_share_a_batch(
    batch: Batch, text_model: TextModel, tokenizer: TextTokenizer, compiler: SchemaCompiler
) -> None:
    requests = []
    for number in range(8):
        request = request_of(tokenizer, f"film {number}", 60, SamplingSettings(1.2, 1.0, 0, number))
        if number % 2:
            request = dataclasses.replace(request, matcher=await compiler.compile(SCHEMA))
        requests.append(request)
    readings = written(batch, requests)
    for number, (request, reading) in enumerate(zip(requests, readings, strict=True)):
        assert reading.finished is not None
        if number % 2:
            assert list(json.loads(reading.text)) == ["narration", "seconds"]
            assert reading.finished.reason is FinishReason.END_OF_TEXT
        else:
            assert reading.text == written_alone(text_model, request)


async def test_what_a_schema_forces_takes_no_step_of_its_own(
    batch: Batch, tokenizer: TextTokenizer, compiler: SchemaCompiler
) -> None:
    request = dataclasses.replace(request_of(tokenizer, "go", 200), matcher=await compiler.compile(SCHEMA))
    reading = Reading()
    batch.admit(request, reading)
    steps = 0
    while not reading.ended:
        batch.step()
        steps += 1
    assert reading.error is None
    assert reading.finished is not None
    assert list(json.loads(reading.text)) == ["narration", "seconds"]
    assert reading.finished.forced_token_count > 2
    assert steps < reading.finished.output_token_count


def test_a_beginning_that_was_read_is_not_read_again(batch: Batch, tokenizer: TextTokenizer) -> None:
    same = "the moon rises over the quiet city and " * 12
    first, second, third = (request_of(tokenizer, same + end, 10) for end in ("a red star", "two ships", "a red star"))
    one, two = written(batch, [first])[0], written(batch, [second])[0]
    assert one.finished is not None
    assert two.finished is not None
    assert one.finished.cached_prompt_token_count == 0
    assert two.finished.cached_prompt_token_count >= 64
    assert two.finished.cached_prompt_token_count % 64 == 0
    again = written(batch, [third, third])
    assert [reading.text for reading in again] == [one.text, one.text]


def test_what_is_reused_is_copied_from_a_running_reply(batch: Batch, tokenizer: TextTokenizer) -> None:
    same = "the moon rises over the quiet city and " * 12
    request = request_of(tokenizer, same, 30)
    alone = written(batch, [request_of(tokenizer, "go"), request])[1]
    running = [Reading(), Reading()]
    batch.admit(request, running[0])
    for _ in range(8):
        batch.step()
    batch.admit(request, running[1])
    while batch.running_count:
        batch.step()
    assert [reading.text for reading in running] == [alone.text] * 2
    assert running[1].finished is not None
    assert running[1].finished.cached_prompt_token_count >= 64


def test_a_cancelled_reply_leaves_its_slot_at_the_next_step(batch: Batch, tokenizer: TextTokenizer) -> None:
    kept, cancelled = Reading(), Reading()
    batch.admit(request_of(tokenizer, "one", 30), kept)
    batch.admit(request_of(tokenizer, "two", 30), cancelled)
    for _ in range(6):
        batch.step()
    cancelled.token.cancel()
    batch.step()
    assert cancelled.ended
    assert isinstance(cancelled.error, Cancelled)
    assert batch.running_count == 1
    while not kept.ended:
        batch.step()
    assert kept.finished is not None


def test_a_reader_that_does_not_read_fails_alone(batch: Batch, tokenizer: TextTokenizer) -> None:
    class Full(Reading):
        def put(self, event: TextDelta) -> None:
            raise SlowReader("too much lies unread")

    slow, other = Full(), Reading()
    batch.admit(request_of(tokenizer, "one", 30), slow)
    batch.admit(request_of(tokenizer, "two", 30), other)
    while batch.running_count:
        batch.step()
    assert isinstance(slow.error, SlowReader)
    assert other.finished is not None


def test_out_of_memory_makes_the_steps_smaller(
    batch: Batch, text_model: TextModel, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch._runner.write

    def write(slots: list[int]) -> Any:
        if len(slots) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(slots)

    monkeypatch.setattr(batch._runner, "write", write)
    requests = [request_of(tokenizer, f"{number} ships", 20) for number in range(3)]
    readings = written(batch, requests, every=1)
    for request, reading in zip(requests, readings, strict=True):
        assert reading.text == written_alone(text_model, request)
        assert reading.finished is not None
        assert reading.finished.rungs in ((), ("smaller_batch",))
    assert any(reading.finished and reading.finished.rungs for reading in readings)


def test_a_reply_that_finds_no_memory_even_alone_fails_alone(
    batch: Batch, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch._runner.write

    def write(slots: list[int]) -> Any:
        if 1 in slots:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(slots)

    monkeypatch.setattr(batch._runner, "write", write)
    readings = written(batch, [request_of(tokenizer, f"{number} ships", 20) for number in range(3)], every=1)
    failed = [reading for reading in readings if reading.error is not None]
    assert len(failed) == 1
    assert isinstance(failed[0].error, torch.OutOfMemoryError | OutOfMemory)


def test_many_replies_send_fewer_messages(
    batch: Batch, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfreel_llm.batch._MESSAGE_S", 10.0)
    hot = [SamplingSettings(1.0, 1.0, 0, seed) for seed in range(4)]
    readings = written(batch, [request_of(tokenizer, "go", 40, each) for each in hot], every=1)
    assert all(reading.text and reading.message_count <= 3 for reading in readings)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("failing", ["nothing", "mixed steps", "mixed steps and many rows"])
def test_logits_are_picked_from_before_the_next_step_writes_over_them(
    text_model: TextModel, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    batch = graphs_of(text_model, tokenizer)
    real, real_write = batch._runner._run, batch._runner.write  # type: ignore[attr-defined]
    before: list[torch.Tensor] = []

    def run(*step: Any) -> Any:
        """Graphs share their memory: what one returned is lost when the next runs."""
        with torch.inference_mode():
            for logits in before:
                logits.fill_(torch.nan)
            before[:] = []
            rows, piece = real(*step)
            before.extend([rows.values, piece])
        return rows, piece

    monkeypatch.setattr(batch._runner, "_run", run)
    if failing != "nothing":
        monkeypatch.setattr(batch._runner, "both", out_of_memory)
    if failing == "mixed steps and many rows":
        monkeypatch.setattr(
            batch._runner, "write", lambda slots: out_of_memory() if len(slots) > 1 else real_write(slots)
        )
    requests = [request_of(tokenizer, f"{number} ships " * 3, 12 + number) for number in range(6)]
    with batch.session():
        readings = written(batch, requests)
    assert [reading.error for reading in readings] == [None] * 6
    assert [reading.text for reading in readings] == [written_alone(text_model, request) for request in requests]


def test_a_reply_that_can_not_be_admitted_ends_alone(
    batch: Batch, text_model: TextModel, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch._runner.begin

    def begin(slot: int, sampling: SamplingSettings) -> None:
        if sampling.seed == 13:
            raise LookupError("no such slot")
        real(slot, sampling)

    monkeypatch.setattr(batch._runner, "begin", begin)
    seeds = (1, 13, 2, 3, 13, 4)
    requests = [request_of(tokenizer, "go", 20, SamplingSettings(1.0, 1.0, 0, seed)) for seed in seeds]
    readings = written(batch, requests, every=2)
    for request, reading in zip(requests, readings, strict=True):
        if request.sampling.seed == 13:
            assert isinstance(reading.error, LookupError)
            assert not reading.text
        else:
            assert reading.error is None
            assert reading.text == written_alone(text_model, request)


async def test_a_reply_whose_mask_fails_ends_alone(
    batch: Batch, tokenizer: TextTokenizer, compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(*, schema: bool) -> TextRequest:
        matcher = await compiler.compile(SCHEMA) if schema else None
        return dataclasses.replace(request_of(tokenizer, "go", 40), matcher=matcher)

    sound = [reading.text for reading in written(batch, [await asked(schema=each) for each in (False, True)], 1)]
    requests = [await asked(schema=each) for each in (False, True, True)]
    real, masks = place.fill_next_token_bitmask, []

    def fill(matcher: Any, *rest: Any) -> None:
        if matcher is requests[1].matcher:
            masks.append(matcher)
            if len(masks) > 3:
                raise ValueError("the grammar is lost")
        real(matcher, *rest)

    monkeypatch.setattr(place, "fill_next_token_bitmask", fill)
    free, broken, under_schema = written(batch, requests, every=1)
    assert isinstance(broken.error, ValueError)
    assert len(masks) == 4
    assert [free.text, under_schema.text] == sound
    assert (free.error, under_schema.error) == (None, None)


def test_a_step_that_can_not_pick_ends_the_replies_it_was_for(
    batch: Batch, text_model: TextModel, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch._runner.pick
    failing = False

    def pick(logits: Any, slots: list[int], masks: Any) -> Any:
        return out_of_memory() if failing and len(slots) > 1 else real(logits, slots, masks)

    monkeypatch.setattr(batch._runner, "pick", pick)
    requests = [request_of(tokenizer, f"{number} ships", 20) for number in range(3)]
    readings = [Reading() for _ in requests]
    for request, reading in zip(requests[:2], readings, strict=False):
        batch.admit(request, reading)
    for _ in range(6):
        batch.step()
    batch.admit(requests[2], readings[2])
    failing = True
    while batch.running_count:
        batch.step()
    assert all(isinstance(reading.error, torch.OutOfMemoryError) for reading in readings[:2])
    assert readings[2].error is None
    assert readings[2].text == written_alone(text_model, requests[2])


def test_only_a_runner_that_is_done_when_it_returns_checks_guesses(
    text_model: TextModel, tokenizer: TextTokenizer
) -> None:
    assert isinstance(text_model.batch._runner, GuessChecker)
    assert not isinstance(graphs_of(text_model, tokenizer)._runner, GuessChecker)


def test_the_peaks_of_a_reply_are_those_of_its_life(
    text_model: TextModel, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = text_model.batch._memory
    bytes_now = 100
    monkeypatch.setattr(memory._source, "window_peak", lambda: Bytes(bytes_now, 2 * bytes_now))
    first, long, second = Reading(), Reading(), Reading()
    batch = text_model.batch
    with batch.session():
        batch.admit(request_of(tokenizer, "one", 5), first)
        batch.admit(request_of(tokenizer, "two", 60), long)
        batch.step()
        bytes_now = 700
        while not first.ended:
            batch.step()
        assert memory.report().devices[0].request_peak.allocated_bytes == 700
        memory._source.reset_window()
        bytes_now = 200
        batch.admit(request_of(tokenizer, "three", 5), second)
        while not second.ended:
            batch.step()
        bytes_now = 150
        while not long.ended:
            batch.step()
    found = []
    for reading in (first, long, second):
        assert reading.finished is not None
        peaks = {each.phase: each.peak for each in reading.finished.phase_peaks}
        assert list(peaks) == ["prefill", "decode"]
        assert all(peak.reserved_bytes == 2 * peak.allocated_bytes for peak in peaks.values())
        found.append(max(peak.allocated_bytes for peak in peaks.values()))
    assert found == [700, 700, 200]
    report = memory.report().devices[0]
    assert report.request_peak.allocated_bytes == 700  # of the reply that ended last
    assert {each.phase: each.peak.allocated_bytes for each in report.phase_peaks}["decode"] == 700
