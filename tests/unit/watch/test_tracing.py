"""Traces: kept and passed on always, sent only where told, and never at the cost of a call."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from small_server import order, small_server
from trace_collector import Collector, collecting

from halfreel.llm.v1 import llm_pb2_grpc
from halfreel_runtime import tracing
from halfreel_runtime.logs import JsonFormatter
from halfreel_runtime.propagation import _told
from halfreel_runtime.server import Server
from halfreel_runtime.settings import ModelServerSettings
from halfreel_runtime.trace_sender import MAX_WAITING_COUNT, SpanSender
from halfreel_runtime.tracing import TraceContext, joined, parse_traceparent, record_span, span, trace_var

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        tracing.start_tracing(collector.endpoint, "llm")
        yield collector
        tracing.stop_tracing()


@pytest.fixture
async def llm() -> AsyncIterator[llm_pb2_grpc.LlmServiceAsyncStub]:
    server, servicer = small_server(ModelServerSettings())
    await server.start()
    servicer.engine.start(lambda: None)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield llm_pb2_grpc.LlmServiceStub(channel)
    await server.stop(0)
    servicer.engine.close()


async def generate(llm: llm_pb2_grpc.LlmServiceAsyncStub, text: str, *metadata: tuple[str, str]) -> None:
    [_ async for _ in llm.Generate(order(text), metadata=metadata)]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "00",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE}-{PARENT}",
        b"00-bytes",
        "x" * 10_000,
    ],
)
def test_what_is_no_traceparent_is_no_trace(text: object) -> None:
    assert parse_traceparent(text) is None


def test_a_traceparent_is_read_and_written() -> None:
    context = parse_traceparent(TRACEPARENT)
    assert context == TraceContext(TRACE, PARENT, sampled=True)
    assert context is not None
    assert context.traceparent == TRACEPARENT
    assert parse_traceparent(TRACEPARENT[:-2] + "00") == TraceContext(TRACE, PARENT, sampled=False)
    assert parse_traceparent(f"01-{TRACE}-{PARENT}-01-more") == TraceContext(TRACE, PARENT)  # a later version


@pytest.mark.parametrize(
    ("state", "kept"),
    [("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", True), ("x" * 513, False), ("a=\x1b[31m", False), (b"a=b", False)],
)
def test_a_traces_state_is_passed_on_unread(state: object, kept: bool) -> None:
    context = parse_traceparent(TRACEPARENT, state)
    assert context is not None
    assert context.state == (state if kept else "")
    token = trace_var.set(context)
    try:
        told = dict(_told(grpc.aio.ClientCallDetails("/x", None, None, None, None)).metadata)
    finally:
        trace_var.reset(token)
    assert told == {"traceparent": TRACEPARENT, **({"tracestate": state} if kept else {})}


def test_without_an_endpoint_nothing_is_imported_and_the_context_is_still_kept_logged_and_passed_on() -> None:
    script = f"""
import sys, logging
from halfreel_runtime import tracing
from halfreel_runtime.logs import JsonFormatter
tracing.start_tracing("", "llm")
with tracing.joined("{TRACEPARENT}"), tracing.span("work"):
    print(JsonFormatter("llm").format(logging.makeLogRecord({{"msg": "event"}})))
    assert tracing.exemplar() == {{"trace_id": "{TRACE}"}}
assert tracing.trace_var.get() is None and tracing.exemplar() is None
assert not any(name.startswith("opentelemetry") for name in sys.modules), "imported"
assert tracing.span_counts() == {{"sent": 0, "dropped": 0}}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trace_id"] == TRACE


def test_an_unwanted_trace_has_no_exemplars() -> None:
    with joined(f"00-{TRACE}-{PARENT}-00"):
        assert trace_var.get() is not None
        assert tracing.exemplar() is None


async def test_a_call_is_a_span_of_its_clients_trace(
    collector: Collector, llm: llm_pb2_grpc.LlmServiceAsyncStub
) -> None:
    await generate(llm, "count 3", ("traceparent", TRACEPARENT), ("x-request-id", "film-1"))
    with pytest.raises(grpc.aio.AioRpcError):
        await generate(llm, " ", ("traceparent", TRACEPARENT))
    await generate(llm, "count 1")
    await asyncio.to_thread(tracing.stop_tracing)
    good, bad, own = collector.named("halfreel.llm.v1.LlmService/Generate")
    assert (good.service, good.trace_id, good.parent_id) == ("halfreel-llm", TRACE, PARENT)
    assert good.attributes["halfreel.request_id"] == "film-1"
    assert good.attributes["rpc.response.status_code"] == "OK"
    assert (good.failed, bad.failed) == (False, True)
    assert bad.attributes["halfreel.reason"] == "INVALID_FIELD"
    assert own.parent_id == ""
    assert own.trace_id != TRACE


async def test_an_unwanted_trace_sends_nothing(collector: Collector, llm: llm_pb2_grpc.LlmServiceAsyncStub) -> None:
    await generate(llm, "count 3", ("traceparent", f"00-{TRACE}-{PARENT}-00"))
    await asyncio.to_thread(tracing.stop_tracing)
    assert collector.spans == []


def test_spans_nest_and_finished_work_can_be_recorded(collector: Collector) -> None:
    now = time.monotonic()
    with span("outer", {"count": 2}):
        record_span("queue", now - 2, now - 1)
        with pytest.raises(RuntimeError), span("inner"):
            raise RuntimeError("/srv/secret")
        outgoing = _told(grpc.aio.ClientCallDetails("/x", None, None, None, None))
        record = json.loads(JsonFormatter("llm").format(logging.makeLogRecord({"msg": "event"})))
    with joined(TRACEPARENT, "a=b"), span("later"):
        assert dict(_told(outgoing).metadata)["tracestate"] == "a=b"
    tracing.stop_tracing()
    (outer,), (inner,), (queue,) = (collector.named(name) for name in ("outer", "inner", "queue"))
    assert inner.parent_id == queue.parent_id == outer.span_id
    assert inner.trace_id == queue.trace_id == outer.trace_id == record["trace_id"]
    assert dict(outgoing.metadata)["traceparent"] == f"00-{outer.trace_id}-{outer.span_id}-01"
    assert inner.failed
    assert inner.attributes == {"error.type": "RuntimeError"}  # the class, never the text
    assert outer.attributes == {"count": 2}
    assert trace_var.get() is None


async def test_a_collector_that_is_away_costs_no_call_its_time_and_spans_are_counted(
    llm: llm_pb2_grpc.LlmServiceAsyncStub,
) -> None:
    async def seconds(count: int) -> float:
        """Of the quickest of three rounds: others use this machine as well."""
        took = []
        for _ in range(3):
            began = time.monotonic()
            for _ in range(count):
                await generate(llm, "count 1")
            took.append(time.monotonic() - began)
        return min(took)

    await seconds(10)
    before = await seconds(100)
    with socket.socket() as nobody:  # takes connections, and never says a word
        nobody.bind(("127.0.0.1", 0))
        nobody.listen()
        tracing.start_tracing(f"http://127.0.0.1:{nobody.getsockname()[1]}", "llm")
        try:
            after = await seconds(100)
            async with asyncio.timeout(20):
                while tracing.span_counts()["dropped"] == 0:
                    await asyncio.sleep(0.1)
        finally:
            began = time.monotonic()
            await asyncio.to_thread(tracing.stop_tracing)
    assert time.monotonic() - began < 15  # a server that stops gives its last spans two seconds
    assert tracing.span_counts() == {"sent": 0, "dropped": 0}
    assert after < 3 * before + 0.5


def test_a_servers_last_spans_are_sent(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    async def served(_: Server) -> int:
        with span("last"):
            return 0

    monkeypatch.setattr(Server, "run", served)
    monkeypatch.setattr(logging, "shutdown", lambda: None)  # the test's own go on
    with pytest.raises(SystemExit):
        small_server(ModelServerSettings())[0].main()
    assert len(collector.named("last")) == 1


def test_more_spans_than_a_collector_takes_are_dropped_and_counted() -> None:
    sender = SpanSender("http://127.0.0.1:1", "llm")
    more = 50
    began = time.monotonic()
    for _ in range(MAX_WAITING_COUNT + 512 + more):
        made, _ = sender.begin("work", None, False, {})
        made.end()
    assert time.monotonic() - began < 5
    assert sender.dropped >= more
    sender.close()
    assert sender.sent == 0
