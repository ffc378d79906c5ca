"""Metrics: there from the start, true afterwards, and never a place for what a client sent."""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.error
import urllib.request
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families
from small_server import order, small_server

from halfreel_runtime.server import Server
from halfreel_runtime.settings import ModelServerSettings

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def get(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def scrape(server: Server) -> Samples:
    _, text = await asyncio.to_thread(get, server, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, metric: str, **labels: str) -> float:
    return samples[(metric, frozenset({"service": "llm", **labels}.items()))]


NAMES = {
    "halfreel_build_info",
    "halfreel_calls_open",
    "halfreel_engine_state",
    "halfreel_gpu_memory_free_bytes",
    "halfreel_gpu_memory_total_bytes",
    "halfreel_gpu_memory_used_bytes",
    "halfreel_host_memory_available_bytes",
    "halfreel_host_memory_total_bytes",
    "halfreel_memory_budget_bytes",
    "halfreel_memory_context_bytes",
    "halfreel_memory_headroom_bytes",
    "halfreel_memory_min_free_bytes",
    "halfreel_memory_other_processes_bytes",
    "halfreel_memory_short",
    "halfreel_memory_warn_ratio",
    "halfreel_model_state",
    "halfreel_process_resident_bytes",
    "halfreel_process_resident_peak_bytes",
    "halfreel_progress_age_seconds",
    "halfreel_queue_oldest_age_seconds",
    "halfreel_request_duration_seconds_bucket",
    "halfreel_request_duration_seconds_count",
    "halfreel_request_duration_seconds_sum",
    "halfreel_requests_failed_total",
    "halfreel_requests_running",
    "halfreel_requests_total",
    "halfreel_requests_waiting",
    "halfreel_torch_memory_allocated_bytes",
    "halfreel_torch_memory_allocated_peak_bytes",
    "halfreel_torch_memory_reserved_bytes",
    "halfreel_torch_memory_reserved_peak_bytes",
    "halfreel_trace_spans_total",
}


async def test_everything_is_there_before_the_first_request(running: Any) -> None:
    samples = await scrape(running.server)
    assert {name for name, _ in samples} == NAMES
    assert value(samples, "halfreel_requests_total", method="LlmService/Generate", code="OK") == 0
    assert value(samples, "halfreel_request_duration_seconds_count", method="MemoryService/WatchMemory") == 0
    assert value(samples, "halfreel_engine_state", state="serving") == 1
    assert value(samples, "halfreel_engine_state", state="loading") == 0
    assert value(samples, "halfreel_model_state", state="awake") == 1
    assert value(samples, "halfreel_model_state", state="asleep") == 0
    assert value(samples, "halfreel_torch_memory_reserved_bytes", gpu_uuid="cpu") > 0


async def test_calls_and_phases_are_counted_and_ids_are_not_labels(running: Any) -> None:
    for _ in range(3):
        [_ async for _ in running.llm.Generate(order("count 2"), metadata=(("x-request-id", "film-12345"),))]
    with contextlib.suppress(grpc.aio.AioRpcError):
        [_ async for _ in running.llm.Generate(order(" "), metadata=(("x-request-id", "film-12345"),))]
    await asyncio.sleep(0.05)
    samples = await scrape(running.server)
    assert value(samples, "halfreel_requests_total", method="LlmService/Generate", code="OK") == 3
    assert value(samples, "halfreel_requests_total", method="LlmService/Generate", code="INVALID_ARGUMENT") == 1
    failed = {"method": "LlmService/Generate", "reason": "INVALID_FIELD"}
    assert value(samples, "halfreel_requests_failed_total", **failed) == 1
    assert value(samples, "halfreel_request_duration_seconds_count", method="LlmService/Generate") == 4
    assert value(samples, "halfreel_phase_memory_peak_bytes", gpu_uuid="cpu", phase="decode") > 0
    assert value(samples, "halfreel_calls_open", method="LlmService/Generate") == 0
    assert "film-12345" not in str(samples)
    assert not any("created" in name for name, _ in samples)
    buckets = {dict(labels)["le"] for name, labels in samples if name.endswith("_bucket")}
    assert "3600.0" in buckets


async def test_the_queue_is_shown_while_it_stands_and_a_scrape_does_not_wait(running: Any) -> None:
    calls = [running.llm.Generate(order("sleep 0.05 400"))]
    for _ in range(2):  # it was queued, and has begun: only now do the others find two places
        await calls[0].read()
    calls += [running.llm.Generate(order("sleep 0.05 400")) for _ in range(2)]
    for call in calls[1:]:
        await call.read()
    await asyncio.sleep(0.1)
    took_s = []
    for _ in range(5):  # others use this machine as well: the quickest tells what the server does
        began = time.monotonic()
        samples = await scrape(running.server)
        took_s.append(time.monotonic() - began)
    assert min(took_s) < 0.2
    assert value(samples, "halfreel_requests_running") == 1
    assert value(samples, "halfreel_requests_waiting") == 2
    assert 0.05 < value(samples, "halfreel_queue_oldest_age_seconds") < 20
    assert 0 < value(samples, "halfreel_progress_age_seconds") < 20
    assert value(samples, "halfreel_calls_open", method="LlmService/Generate") == 3
    for call in calls:
        call.cancel()


async def test_probes_tell_live_and_ready() -> None:
    server, servicer = small_server(ModelServerSettings())
    await server.start()

    async def probe(path: str) -> int:
        return (await asyncio.to_thread(get, server, path))[0]

    async def ready(status: int) -> None:
        async with asyncio.timeout(20):
            while await probe("/readyz") != status:
                await asyncio.sleep(0.01)

    assert (await probe("/livez"), await probe("/readyz")) == (200, 503)
    servicer.engine.start(lambda: None)
    await ready(200)
    assert await probe("/livez") == 200
    assert await probe("/") == 404
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_stream("/halfreel.llm.v1.LlmService/Generate")(order("die").SerializeToString())
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
    await ready(503)
    assert await probe("/livez") == 503
    await server.stop(0)
