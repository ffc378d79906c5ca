"""LlmService over a real loopback channel: the order of events, every reason of an error, deadline and cancel."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import tiny_llm
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel_llm import __main__ as llm_main
from halfreel_llm import served_model
from halfreel_llm.network import Network
from halfreel_llm.settings import LlmSettings
from halfreel_runtime.errors import error_from_status
from halfreel_runtime.server import Server

SERVICE_NAME = "halfreel.llm.v1.LlmService"
SERVING = health_pb2.HealthCheckResponse.SERVING
STARTS_WITHIN_S = 60.0
USER = [llm_pb2.Message(role=llm_pb2.ROLE_USER, content="a red circle moving over a blue sky")]
# Its digits never end, so that only the limit, a cancel or a deadline ends the reply.
ENDLESS = '{"type":"array","items":{"enum":[0,1]},"minItems":100000}'
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 12}, "seconds": {"enum": [2, 4]}},
        "required": ["title", "seconds"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm.save_glm(tmp_path_factory.mktemp("models") / "tiny-glm")


# A server as a process of its own, as people run it.


def start_process(*flags: str, log: Path) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    command = [sys.executable, "-m", "halfreel_llm", "--device", "cpu", "--port", "0", "--metrics-port", "0", *flags]
    with log.open("wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


@pytest.fixture(scope="module")
def process(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    place = tmp_path_factory.mktemp("server")
    port_file, log = place / "ports.json", place / "log"
    # How full the machine is, of which it would warn, is no doing of this server.
    flags = ["--thread-count", "1", "--warn-threshold-ratio", "0", "--port-file", str(port_file)]
    server = start_process("--model", str(folder), *flags, log=log)
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not port_file.is_file():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.ports = json.loads(port_file.read_text())  # type: ignore[attr-defined]  # for the fixture below
    yield server
    server.send_signal(signal.SIGTERM)
    assert server.wait(90) == 0, log.read_text()  # its grace is 30 s, and a busy machine adds to it
    lines = log.read_text().splitlines()
    assert all(json.loads(line)["level"] in ("debug", "info") for line in lines), log.read_text()


@pytest.fixture(scope="module")
def stub(process: Any) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{process.ports['port']}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME)).status != SERVING:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield llm_pb2_grpc.LlmServiceStub(channel)


def request(**fields: Any) -> llm_pb2.GenerateRequest:
    return llm_pb2.GenerateRequest(**({"messages": USER, "seed": 3, "max_output_token_count": 60} | fields))


def endless(**fields: Any) -> llm_pb2.GenerateRequest:
    return request(json_schema=ENDLESS, max_output_token_count=900, **fields)


def generate(stub: Any, **fields: Any) -> list[llm_pb2.GenerateResponse]:
    return list(stub.Generate(request(**fields)))


def text_of(events: list[llm_pb2.GenerateResponse]) -> str:
    return "".join(event.text_delta.text for event in events)


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_status(caught.value)


def test_events_come_in_order(stub: Any) -> None:
    events = generate(stub)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "queued"
    assert kinds[-1] == "completed"
    assert set(kinds[1:-1]) == {"text_delta"}
    assert events[0].queued.waiting_request_count == 0
    assert all(event.text_delta.text and event.text_delta.token_count > 0 for event in events[1:-1])


def test_the_end_tells_what_it_took(stub: Any) -> None:
    events = generate(stub, max_output_token_count=30)
    completed = events[-1].completed
    assert completed.finish_reason in (llm_pb2.FINISH_REASON_LENGTH, llm_pb2.FINISH_REASON_END_OF_TEXT)
    assert 10 < completed.prompt_token_count < 40
    assert 0 < completed.output_token_count <= 30
    assert 0 < sum(event.text_delta.token_count for event in events) <= completed.output_token_count
    assert (completed.seed, completed.dtype) == (3, "float32")
    first, whole = completed.time_to_first_token.ToNanoseconds(), completed.generate_duration.ToNanoseconds()
    assert 0 < first <= whole
    assert completed.queue_duration.ToNanoseconds() > 0
    peaks = {each.phase: each.peak.allocated_bytes for each in completed.phase_peaks}
    assert list(peaks) == ["prefill", "decode"]
    assert min(peaks.values()) > 0


def test_the_same_seed_gives_the_same_text(stub: Any) -> None:
    assert text_of(generate(stub)) == text_of(generate(stub))
    assert text_of(generate(stub)) != text_of(generate(stub, seed=4))


def test_a_seed_is_chosen_and_told_where_none_is_given(stub: Any) -> None:
    without = request()
    without.ClearField("seed")
    first, second = list(stub.Generate(without)), list(stub.Generate(without))
    assert first[-1].completed.seed != second[-1].completed.seed
    assert text_of(generate(stub, seed=first[-1].completed.seed)) == text_of(first)


def test_a_reply_under_a_schema_is_valid_json(stub: Any) -> None:
    for seed in range(5):
        events = generate(stub, json_schema=SCHEMA, seed=seed, temperature=1.5)
        assert events[-1].completed.finish_reason == llm_pb2.FINISH_REASON_END_OF_TEXT
        value = json.loads(text_of(events))
        assert list(value) == ["title", "seconds"]
        assert value["seconds"] in (2, 4)


def test_a_reply_that_the_limit_cuts_says_so(stub: Any) -> None:
    events = list(stub.Generate(endless()))
    completed = events[-1].completed
    assert (completed.finish_reason, completed.output_token_count) == (llm_pb2.FINISH_REASON_LENGTH, 900)
    assert text_of(events).startswith("[")


def test_a_stop_string_ends_the_reply_before_it(stub: Any) -> None:
    whole = text_of(generate(stub))
    stop = whole[len(whole) // 2 :][:3]
    events = generate(stub, stop=["@never@", stop])
    assert events[-1].completed.finish_reason == llm_pb2.FINISH_REASON_STOP_STRING
    assert text_of(events) == whole[: whole.index(stop)]


def test_get_model_tells_limits_and_defaults_that_hold(stub: Any) -> None:
    model = stub.GetModel(llm_pb2.GetModelRequest())
    assert (model.model_id, model.revision, model.architecture) == ("tiny-glm", "", "GlmForCausalLM")
    assert (model.dtype, model.device) == ("float32", "cpu")
    assert model.weight_bytes == 4 * model.parameter_count > 10**5
    assert model.context_token_count == tiny_llm.CONTEXT_TOKEN_COUNT
    assert model.default_temperature == pytest.approx(0.8)
    assert model.default_top_p == pytest.approx(0.8)
    assert (model.default_top_k, model.default_max_output_token_count) == (0, 512)
    assert model.max_waiting_request_count == 16
    assert model.contract_version == "1.0"
    sampling = {"temperature": model.default_temperature, "top_p": model.default_top_p, "top_k": model.default_top_k}
    assert text_of(generate(stub)) == text_of(generate(stub, **sampling))
    error = refused(lambda: generate(stub, max_output_token_count=model.context_token_count + 1))
    assert "max_output_token_count is 1025; it must be between 1 and 1024" in error.message


def test_a_plan_tells_what_requests_would_take(stub: Any) -> None:
    small = stub.PlanMemory(llm_pb2.PlanMemoryRequest(prompt_token_count=10, max_output_token_count=20))
    large = stub.PlanMemory(
        llm_pb2.PlanMemoryRequest(prompt_token_count=500, max_output_token_count=500, concurrent_request_count=8)
    )
    model = stub.GetModel(llm_pb2.GetModelRequest())
    assert (model.slot_count, model.weight_precision) == (8, "float32")
    assert model.kv_cache_bytes_per_token == 2 * 2 * 2 * 16 * 4  # keys and values, layers, key heads, size, FP32
    assert [phase.phase for phase in small.plan.phases] == ["prefill", "decode"]
    assert small.plan.verdict == large.plan.verdict == gpu_pb2.PLAN_VERDICT_FITS
    assert small.fitting_request_count == large.fitting_request_count == 8
    more = large.plan.phases[1].resident_bytes - small.plan.phases[1].resident_bytes
    assert more == (8 * 1000 - 30) * model.kv_cache_bytes_per_token
    held = stub.MemoryStatus(llm_pb2.MemoryStatusRequest()).report.devices[0].allocated_bytes
    assert 0.5 * held < small.plan.peak_reserved_bytes < 2 * held


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt_token_count": -1}, "prompt_token_count"),
        ({"prompt_token_count": 1025}, "prompt_token_count"),
        ({"max_output_token_count": 0}, "max_output_token_count"),
        ({"concurrent_request_count": 9}, "concurrent_request_count"),
        ({"concurrent_request_count": 0}, "concurrent_request_count"),
    ],
)
def test_a_plan_of_what_can_not_be_is_refused(stub: Any, fields: dict[str, int], named: str) -> None:
    error = refused(lambda: stub.PlanMemory(llm_pb2.PlanMemoryRequest(**fields)))  # type: ignore[arg-type]
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in error.violations] == [named]


def test_a_plan_longer_than_the_context_is_refused(stub: Any) -> None:
    wanted = llm_pb2.PlanMemoryRequest(prompt_token_count=1000, max_output_token_count=25)
    assert refused(lambda: stub.PlanMemory(wanted)).reason == "PROMPT_TOO_LONG"


def message(content: str = "hi", role: int = llm_pb2.ROLE_USER) -> llm_pb2.Message:
    return llm_pb2.Message(role=role, content=content)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "named", "limit"),
    [
        ("messages", [], "messages", "between 1 and 64"),
        ("messages", [message()] * 65, "messages", "between 1 and 64"),
        ("messages", [message("x" * 600_000)] * 2, "messages", "at most 1000000"),
        ("messages", [message(" \n")], "messages[0].content", "is empty"),
        ("messages", [message(), message(role=0)], "messages[1].role", "must be"),
        ("messages", [message(role=9)], "messages[0].role", "must be"),
        ("messages", [message(), message(role=llm_pb2.ROLE_ASSISTANT)], "messages[1].role", "must not be"),
        ("max_output_token_count", 0, "max_output_token_count", "between 1 and 1024"),
        ("max_output_token_count", -(2**31), "max_output_token_count", "between 1 and 1024"),
        ("temperature", float("nan"), "temperature", "between 0 and 2"),
        ("temperature", 2.01, "temperature", "between 0 and 2"),
        ("temperature", -0.01, "temperature", "between 0 and 2"),
        ("top_p", 0.0, "top_p", "above 0 and at most 1"),
        ("top_p", 1.01, "top_p", "above 0 and at most 1"),
        ("top_p", float("nan"), "top_p", "above 0 and at most 1"),
        ("top_k", -1, "top_k", "between 0 and 1000"),
        ("top_k", 1001, "top_k", "between 0 and 1000"),
        ("seed", -1, "seed", "between 0 and 9223372036854775807"),
        ("stop", ["a"] * 5, "stop", "at most 4"),
        ("stop", ["a", ""], "stop[1]", "between 1 and 64"),
        ("stop", ["x" * 65], "stop[0]", "between 1 and 64"),
        ("request_id", "a\nb", "request_id", "128 visible ASCII"),
        ("request_id", "x" * 129, "request_id", "128 visible ASCII"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_limit(
    stub: Any, field: str, value: Any, named: str, limit: str
) -> None:
    error = refused(lambda: generate(stub, **{field: value}))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in error.violations] == [named]
    assert limit in error.message


def test_the_edges_of_the_limits_are_taken(stub: Any) -> None:
    edges = {"temperature": 2, "top_p": 1, "top_k": 1000, "seed": 2**63 - 1, "stop": ["x" * 64] * 4}
    for fields in (edges, {"temperature": 0, "top_p": 1e-7, "top_k": 0, "seed": 0, "request_id": "~" * 128}):
        assert generate(stub, max_output_token_count=3, **fields)[-1].completed.output_token_count <= 3


def test_all_mistakes_are_told_at_once(stub: Any) -> None:
    error = refused(lambda: generate(stub, temperature=3, top_k=-1, seed=-1, stop=[""]))
    assert {violation.field for violation in error.violations} == {"temperature", "top_k", "seed", "stop[0]"}


def test_a_prompt_that_leaves_no_room_is_refused_with_its_figures(stub: Any) -> None:
    turns = [message("a red circle " * 200)]
    error = refused(lambda: generate(stub, messages=turns, max_output_token_count=512))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    tokens = int(error.metadata["prompt_token_count"])
    assert tokens > 512
    assert error.metadata["max_output_token_count"] == "512"
    assert error.metadata["context_token_count"] == "1024"
    assert f"messages have {tokens} tokens" in error.message


def test_the_whole_context_can_be_used(stub: Any) -> None:
    turns = [message("a red circle " * 100)]
    tokens = generate(stub, messages=turns, max_output_token_count=1)[-1].completed.prompt_token_count
    room = tiny_llm.CONTEXT_TOKEN_COUNT - tokens
    events = generate(stub, messages=turns, max_output_token_count=room, json_schema=ENDLESS)
    assert events[-1].completed.output_token_count == room
    assert refused(lambda: generate(stub, messages=turns, max_output_token_count=room + 1)).reason == "PROMPT_TOO_LONG"


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"type":"string","pattern":"(a+)+"}', "pattern"),
        ('{"$ref":"http://127.0.0.1/schema"}', "another document"),
        ('{"type":"nonsense"}', "nonsense"),
        ('{"title":"' + "x" * 17_000 + '"}', "at most 16384"),
        ('{"items":' * 17 + "{}" + "}" * 17, "deeper than 16"),
    ],
)
def test_a_bad_schema_is_refused_by_name(stub: Any, schema: str, told: str) -> None:
    error = refused(lambda: generate(stub, json_schema=schema))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SCHEMA_INVALID")
    assert [violation.field for violation in error.violations] == ["json_schema"]
    assert told in error.message
    assert "/work" not in error.message


def test_bytes_that_are_no_request_are_refused(process: Any) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{process.ports['port']}") as channel:
        stream = channel.unary_stream(f"/{SERVICE_NAME}/Generate")
        errors = [refused(lambda: list(stream(b"\xff\xff")))]
        for method in ("GetModel", "MemoryStatus"):
            unary = channel.unary_unary(f"/{SERVICE_NAME}/{method}")
            errors.append(refused(lambda unary=unary: unary(b"\xff\xff")))
        for error in errors:
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


def wait_idle(stub: Any) -> float:
    """Waits until the model does nothing; returns the seconds that took."""
    began = time.monotonic()
    while stub.MemoryStatus(llm_pb2.MemoryStatusRequest()).report.devices[0].current_phase:
        assert time.monotonic() - began < 20
        time.sleep(0.002)
    return time.monotonic() - began


def test_a_deadline_ends_the_work(stub: Any) -> None:
    took = []
    for _ in range(3):  # others use this machine as well: the quickest tells what the server does
        began = time.monotonic()
        error = refused(lambda: list(stub.Generate(endless(), timeout=0.3)))
        took.append(time.monotonic() - began)
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_idle(stub)
    assert min(took) < 1.5


def test_a_cancelled_call_frees_the_model_at_the_next_token(stub: Any) -> None:
    took = []
    for _ in range(5):
        call = stub.Generate(endless())
        next(event for event in call if event.WhichOneof("event") == "text_delta")
        call.cancel()
        took.append(wait_idle(stub))
    assert min(took) < 0.05  # a token takes some 2 ms; others may use this machine as well
    assert text_of(generate(stub)) == text_of(generate(stub))


def test_memory_is_told_while_the_model_writes(stub: Any) -> None:
    call = stub.Generate(endless())
    try:
        next(event for event in call if event.WhichOneof("event") == "text_delta")
        (device,) = stub.MemoryStatus(llm_pb2.MemoryStatusRequest()).report.devices
        assert device.current_phase == "decode"
        assert device.device_kind == gpu_pb2.DEVICE_KIND_CPU
        assert device.allocated_bytes > 0
        assert {each.phase for each in device.phase_peaks} == {"load", "prefill", "decode"}
    finally:
        call.cancel()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model", "/nowhere/at-all"], "there is no such folder"),
        (["--contxt-token-count", "9"], "did you mean --context-token-count"),
        (["--precision", "fp8"], "--precision is 'fp8'"),
    ],
)
def test_a_server_that_can_not_serve_ends_with_one_clear_line(
    folder: Path, tmp_path: Path, flags: list[str], told: str
) -> None:
    log = tmp_path / "log"
    server = start_process("--model", str(folder), *flags, log=log)
    assert server.wait(STARTS_WITHIN_S) not in (0, None)
    lines = [line for line in log.read_text().splitlines() if '"info"' not in line]
    assert len(lines) == 1
    assert told in lines[0]


# A server in this process, where a failure can be put in.


@asynccontextmanager
async def serving(folder: Path, *, ready: bool = True, **changes: Any) -> AsyncIterator[tuple[Any, Server]]:
    threads = torch.get_num_threads()
    settings = LlmSettings(model=str(folder), device="cpu", port=0, metrics_port=0, thread_count=1, **changes)
    server = llm_main.make_server(settings)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = llm_pb2_grpc.LlmServiceStub(channel)
        try:
            while ready and not server._ready:
                await asyncio.sleep(0.02)
            yield stub, server
        finally:
            await server.stop(0)
            for engine in server._engines:
                engine.close()
            torch.set_num_threads(threads)


async def error_of(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return error_from_status(caught.value)


async def begin(call: Any) -> None:
    """Reads up to the first text."""
    while (await call.read()).WhichOneof("event") != "text_delta":
        pass


async def rest(call: Any) -> list[llm_pb2.GenerateResponse]:
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def test_a_full_queue_refuses_and_says_when_to_come_back(folder: Path) -> None:
    async with serving(folder, max_waiting_request_count=1, slot_count=1) as (stub, _):
        running = stub.Generate(endless())
        await begin(running)
        waiting = stub.Generate(endless())
        assert (await waiting.read()).queued.waiting_request_count == 0
        took = []
        for _ in range(3):  # others use this machine as well: the quickest tells what the server does
            began = time.monotonic()
            error = await error_of(stub.Generate(endless()))
            took.append(time.monotonic() - began)
            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert min(took) < 0.5
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        assert error.metadata["max_waiting_request_count"] == "1"
        running.cancel()
        await begin(waiting)  # its turn has come
        waiting.cancel()


def verdicts_of(server: Server) -> dict[str, float]:
    """What the server's /metrics tells of its admissions."""
    text = generate_latest(server._metrics.registry).decode()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return {each.labels["verdict"]: each.value for each in samples if each.name == "halfreel_admissions_total"}


async def test_verdicts_are_counted(folder: Path) -> None:
    async with serving(folder, max_waiting_request_count=1, slot_count=1) as (stub, server):
        none = dict.fromkeys(("fits", "fits_alone", "cheaper_fits", "refused"), 0.0)
        assert verdicts_of(server) == none
        for _ in range(2):
            assert [event async for event in stub.Generate(request(max_output_token_count=2))]
        turns = [message("a red circle " * 200)]
        assert (await error_of(stub.Generate(request(messages=turns, max_output_token_count=512)))).reason
        assert (await error_of(stub.Generate(request(temperature=9)))).reason == "INVALID_FIELD"
        assert verdicts_of(server) == none | {"fits": 2, "refused": 1}
        running = stub.Generate(endless())
        await begin(running)
        waiting = stub.Generate(endless())
        await waiting.read()
        assert (await error_of(stub.Generate(endless()))).reason == "QUEUE_FULL"  # it fits, and may come again
        assert verdicts_of(server) == none | {"fits": 5, "refused": 1}
        running.cancel()
        waiting.cancel()


async def test_what_does_not_fit_the_budget_is_refused_and_counted(folder: Path) -> None:
    async with serving(folder, memory_budget="1MiB") as (stub, server):
        error = await error_of(stub.Generate(request()))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PLAN_REFUSED")
        assert error.metadata["free_bytes"] == str(2**20)
        assert int(error.metadata["needed_bytes"]) > 2**20
        assert verdicts_of(server)["refused"] == 1


async def test_requests_run_in_turn(folder: Path) -> None:
    async with serving(folder, slot_count=1) as (stub, _):

        async def write() -> list[llm_pb2.GenerateResponse]:
            return [event async for event in stub.Generate(request())]

        results = await asyncio.gather(*(write() for _ in range(4)))
        assert len({text_of(events) for events in results}) == 1
        assert max(events[0].queued.waiting_request_count for events in results) >= 1


async def test_while_the_model_loads_only_memory_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()
    real = served_model.load_model
    monkeypatch.setattr(served_model, "load_model", lambda *args, **kw: (loaded.wait(30), real(*args, **kw))[1])
    async with serving(folder, ready=False) as (stub, _):
        error = await error_of(stub.Generate(request()))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING")
        assert error.retry_after_s is not None
        assert (await stub.MemoryStatus(llm_pb2.MemoryStatusRequest())).report.devices[0].current_phase == "load"
        loaded.set()


async def test_out_of_memory_fails_the_request_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(folder) as (stub, _):
        before = [event async for event in stub.Generate(request())]

        def exhausted(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        with monkeypatch.context() as patch:
            patch.setattr(Network, "forward", exhausted)
            error = await error_of(stub.Generate(request()))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
        after = [event async for event in stub.Generate(request())]
        assert text_of(after) == text_of(before)


async def test_a_broken_device_ends_the_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(folder) as (stub, server):

        def broken(*_: Any) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(Network, "forward", broken)
        error = await error_of(stub.Generate(request()))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD")
        error = await error_of(stub.Generate(request()))
        assert error.reason == "ENGINE_DEAD"
        await asyncio.wait_for(server._stop.wait(), 20)


async def test_an_unknown_failure_tells_nothing_but_the_request_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(folder) as (stub, _):

        def failing(*_: Any) -> None:
            raise LookupError("/secret/path")

        with monkeypatch.context() as patch:
            patch.setattr(Network, "forward", failing)
            error = await error_of(stub.Generate(request(), metadata=(("x-request-id", "r-77"),)))
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "secret" not in error.message
        assert "r-77" in error.message
        assert [event async for event in stub.Generate(request())]


async def test_a_server_told_to_stop_lets_a_reply_end_and_takes_no_more(folder: Path) -> None:
    async with serving(folder) as (stub, server):
        call = stub.Generate(request(json_schema=ENDLESS, max_output_token_count=400))
        await begin(call)
        stopping = asyncio.create_task(server.stop(20))
        await asyncio.sleep(0.05)
        error = await error_of(stub.Generate(request()))
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert (await rest(call))[-1].completed.output_token_count == 400
        await stopping


async def test_text_that_lies_unread_is_merged(folder: Path) -> None:
    async with serving(folder) as (stub, _):
        call = stub.Generate(endless())
        await begin(call)
        time.sleep(0.5)
        events = await rest(call)
        tokens = [event.text_delta.token_count for event in events[:-1]]
        assert max(tokens) > 20
        assert events[-1].completed.output_token_count == 900
