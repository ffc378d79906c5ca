"""A client that vanishes without a word, as when its machine loses power, is noticed within 20 seconds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
from small_server import order

from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc


class Wire:
    """Carries bytes between a client and a server until it is cut: then neither hears of the other any more."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._cut = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        self._cut.set()

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._one_way(source, sink))
            self._tasks.add(task)

    async def _one_way(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if not self._cut.is_set():
                    sink.write(data)


async def freed_s(running: Any) -> float:
    """Seconds from the moment a client vanishes until the engine is free."""
    wire = Wire(running.server.port)
    port = await wire.open()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: llm_pb2_grpc.LlmServiceAsyncStub = llm_pb2_grpc.LlmServiceStub(channel)
        call = stub.Generate(order("silent 100"))
        assert (await call.read()).WhichOneof("event") == "queued"  # type: ignore[union-attr]
        async with asyncio.timeout(20):
            while not running.servicer.engine.running_count:
                await asyncio.sleep(0.01)
        wire.cut()
        began = time.monotonic()
        async with asyncio.timeout(60):
            while running.servicer.engine.running_count:
                await asyncio.sleep(0.05)
        took_s = time.monotonic() - began
        call.cancel()
    await wire.close()
    return took_s


async def test_a_vanished_client_frees_the_engine_within_20_seconds(running: Any) -> None:
    took_s = [await freed_s(running)]
    if took_s[0] > 20:  # it takes 18 s, and a busy neighbour may take the cores for more than the other two
        took_s.append(await freed_s(running))
    assert min(took_s) <= 20
    assert await running.llm.MemoryStatus(llm_pb2.MemoryStatusRequest())
