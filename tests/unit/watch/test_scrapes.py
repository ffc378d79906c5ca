"""A scrape: answered in every state of the server, soon, and no larger for whatever clients send."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from small_server import order, small_server

from halfreel_runtime.server import Server
from halfreel_runtime.settings import ModelServerSettings

WITHIN_S = 0.05


def scrape(server: Server) -> tuple[float, dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    """Seconds that it took, and all samples."""
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=20) as page:
        text = page.read().decode()
    seconds = time.monotonic() - began
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return seconds, {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


async def state(server: Server, name: str) -> str:
    _, samples = await asyncio.to_thread(scrape, server)
    return next(
        dict(labels)["state"]
        for (metric, labels), value in samples.items()
        if metric == f"halfreel_{name}_state" and value == 1
    )


async def test_a_scrape_is_answered_from_the_start_to_the_end() -> None:
    server, servicer = small_server(ModelServerSettings(grace_s=5))
    loaded = threading.Event()
    await server.start()
    servicer.engine.start(lambda: loaded.wait(60) and None)
    assert await state(server, "engine") == "loading"
    loaded.set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        generate = channel.unary_stream("/halfreel.llm.v1.LlmService/Generate")
        call = generate(order("sleep 0.05 30").SerializeToString())
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.read()
        async with asyncio.timeout(20):
            while await state(server, "engine") != "serving":
                await asyncio.sleep(0.01)
        call = generate(order("sleep 0.05 30").SerializeToString())
        for _ in range(2):
            await call.read()
        stopping = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0.1)
        assert await state(server, "engine") == "draining"
        while await call.read() is not grpc.aio.EOF:  # the scrape took nothing from the request that drains
            pass
        await stopping
    servicer.engine.close()


async def test_a_scrape_takes_no_longer_while_the_model_computes(running: Any) -> None:
    pytest.importorskip("torch")  # here, as its import would be a long silence of the engine

    async def median_s() -> float:
        return sorted([(await asyncio.to_thread(scrape, running.server))[0] for _ in range(11)])[5]

    call = running.llm.Generate(order("compute 60"))
    for _ in range(2):
        await call.read()
    medians: list[float] = []
    # Others use this machine as well: the quietest window tells what a scrape takes.
    while min(medians, default=WITHIN_S) >= WITHIN_S and len(medians) < 10:
        medians.append(await median_s())
    call.cancel()
    assert min(medians) < WITHIN_S, medians


async def test_a_flood_of_distinct_strings_makes_no_series(running: Any) -> None:
    async def flood(first: int, count: int) -> None:
        for number in range(first, first + count):
            name = f"client-{number}"
            metadata = (("x-request-id", name), ("traceparent", name), ("authorization", f"Bearer {name}"))
            kind = number % 4
            with contextlib.suppress(grpc.aio.AioRpcError):
                if kind == 0:
                    [_ async for _ in running.llm.Generate(order(f"{name} 1"), metadata=metadata)]
                elif kind == 1:
                    [_ async for _ in running.llm.Generate(order("count 1"), metadata=metadata)]
                elif kind == 2:
                    await running.channel.unary_unary(f"/halfreel.llm.v1.LlmService/{name}")(b"", metadata=metadata)
                else:
                    await running.channel.unary_unary(f"/{name}/{name}")(b"", metadata=metadata)

    await flood(0, 8)
    _, before = await asyncio.to_thread(scrape, running.server)
    await flood(8, 400)
    seconds, after = await asyncio.to_thread(scrape, running.server)
    again, _ = await asyncio.to_thread(scrape, running.server)
    assert min(seconds, again) < 1
    assert after.keys() == before.keys()
    assert "client-" not in str(after)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_are_on_the_same_port(running: Any, path: str) -> None:
    def get() -> tuple[int, bytes]:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.server.metrics_port}{path}", timeout=20) as page:
            return page.status, page.read()

    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(urllib.error.HTTPError):
                assert await asyncio.to_thread(get) == (200, b"ok\n")
                return
            await asyncio.sleep(0.01)


async def test_what_newer_prometheus_asks_for_parses_and_has_exemplars(running: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
    [_ async for _ in running.llm.Generate(order("count 1"), metadata=metadata)]
    accept = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
        "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    )

    def get() -> tuple[str, str]:
        url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=20) as page:
            return page.headers["Content-Type"], page.read().decode()

    content_type, text = await asyncio.to_thread(get)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    traces = {
        sample.exemplar.labels["trace_id"]
        for family in openmetrics_families(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert traces == {trace}
