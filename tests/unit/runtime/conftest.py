"""A small server in this process, and its channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from small_server import Running, small_server

from halfreel_runtime.engine import EngineState
from halfreel_runtime.settings import ModelServerSettings


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    server, servicer = small_server(ModelServerSettings(max_waiting_request_count=2, stall_s=5, grace_s=5))
    await server.start()
    servicer.engine.start(servicer.load)
    while servicer.engine.state is EngineState.LOADING:
        await asyncio.sleep(0.002)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Running(server, servicer, channel)
        await server.stop(0)
    assert servicer.engine.close()
