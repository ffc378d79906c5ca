"""A small server in this process, and its channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
from small_server import SmallLlm, small_server

from halfreel.gpu.v1 import gpu_pb2_grpc
from halfreel.llm.v1 import llm_pb2_grpc
from halfreel_runtime.server import Server
from halfreel_runtime.settings import ModelServerSettings


@dataclass
class Running:
    server: Server
    servicer: SmallLlm
    channel: grpc.aio.Channel

    @property
    def llm(self) -> llm_pb2_grpc.LlmServiceAsyncStub:
        return llm_pb2_grpc.LlmServiceStub(self.channel)

    @property
    def memory(self) -> gpu_pb2_grpc.MemoryServiceAsyncStub:
        return gpu_pb2_grpc.MemoryServiceStub(self.channel)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    server, servicer = small_server(ModelServerSettings(max_waiting_request_count=2, stall_s=5, grace_s=5))
    await server.start()
    servicer.engine.start(lambda: None)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Running(server, servicer, channel)
        await server.stop(0)
    assert servicer.engine.close()
