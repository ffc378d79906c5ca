"""A small server in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import grpc
import pytest
from small_server import small_server

from halfreel.llm.v1 import llm_pb2_grpc
from halfreel_runtime.settings import ModelServerSettings


@pytest.fixture
async def running() -> AsyncIterator[SimpleNamespace]:
    server, servicer = small_server(ModelServerSettings(max_waiting_request_count=2, stall_s=5, grace_s=5))
    await server.start()
    servicer.engine.start(lambda: None)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield SimpleNamespace(server=server, channel=channel, llm=llm_pb2_grpc.LlmServiceStub(channel))
        await server.stop(0)
    assert servicer.engine.close()
