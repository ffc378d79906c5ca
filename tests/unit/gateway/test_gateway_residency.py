"""What all servers say of their memory, those behind one name included; whether both models are in memory together."""

from __future__ import annotations

import asyncio
import socket
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway_doubles import VideoDouble

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2_grpc
from halfreel_gateway.channels import OPEN
from halfreel_gateway.memory import ServersMemory, are_resident_together

LLM, VIDEO = pb.SERVER_KIND_LLM, pb.SERVER_KIND_VIDEO
AWAKE, ASLEEP, WAKING = gpu_pb2.MODEL_STATE_AWAKE, gpu_pb2.MODEL_STATE_ASLEEP, gpu_pb2.MODEL_STATE_WAKING


def server(kind: pb.ServerKind.ValueType, gpu: str, state: gpu_pb2.ModelState.ValueType) -> pb.ServerMemory:
    report = gpu_pb2.MemoryReport(devices=[gpu_pb2.DeviceMemory(gpu_uuid=gpu)], model_state=state)
    return pb.ServerMemory(kind=kind, report=report)


@pytest.mark.parametrize(
    ("servers", "together"),
    [
        ([server(LLM, "GPU-1", AWAKE), server(VIDEO, "GPU-1", AWAKE)], True),
        ([server(LLM, "GPU-1", AWAKE), server(VIDEO, "GPU-1", ASLEEP)], False),
        ([server(LLM, "GPU-1", WAKING), server(VIDEO, "GPU-1", AWAKE)], False),
        ([server(LLM, "GPU-1", ASLEEP), server(VIDEO, "GPU-2", ASLEEP)], True),  # each wakes without the other
        ([server(LLM, "cpu", gpu_pb2.MODEL_STATE_UNSPECIFIED), server(VIDEO, "cpu", AWAKE)], True),
        ([server(LLM, "GPU-1", AWAKE), server(VIDEO, "GPU-2", AWAKE), server(VIDEO, "GPU-1", ASLEEP)], False),
        ([server(LLM, "GPU-1", AWAKE), pb.ServerMemory(kind=VIDEO, problem="is not reachable")], False),
        ([], False),
    ],
)
def test_together(servers: list[pb.ServerMemory], together: bool) -> None:
    assert are_resident_together(servers) is together


async def test_every_server_behind_one_name_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers, port = [], 0
    for host in ("127.0.0.1", "127.0.0.2"):
        each = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        video_pb2_grpc.add_VideoServiceServicer_to_server(VideoDouble(tmp_path), each)
        port = each.add_insecure_port(f"{host}:{port}")
        each.start()
        servers.append(each)
    really = socket.getaddrinfo

    def two_records(host: Any, *rest: Any, **named: Any) -> Any:
        hosts = ("127.0.0.1", "127.0.0.2") if host == "video.test" else (host,)
        return [entry for each in hosts for entry in really(each, *rest, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", two_records)
    memory = ServersMemory([f"127.0.0.1:{port + 1 if port < 65535 else 1}"], [f"video.test:{port}"], OPEN)
    try:
        assert await memory.video_server_count() == 2
        told = await memory.ask()
        assert [each.address for each in told[1:]] == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
        assert [each.report.devices[0].gpu_uuid for each in told[1:]] == ["cpu", "cpu"]
        assert told[0].problem
        memory.start()
        assert await asyncio.to_thread(memory.resident_together) is False, "no language model answers"
    finally:
        await memory.close()
        for each in servers:
            each.stop(0).wait()
