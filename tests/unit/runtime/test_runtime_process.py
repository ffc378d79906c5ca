"""A server as a process: signals, exit codes, the port file, and what it says on stderr."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import small_server
from small_server import SECRET, order

from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc

PROGRAM = small_server.__file__


async def start(*flags: str, **environment: str) -> asyncio.subprocess.Process:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HALFREEL_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, *flags, stderr=asyncio.subprocess.PIPE, env={**clean, **environment}
    )


async def ports_of(path: Path) -> dict[str, int]:
    async with asyncio.timeout(60):
        while not path.exists():
            await asyncio.sleep(0.02)
    return json.loads(path.read_text())


def lines(stderr: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.decode().splitlines()]


class Started:
    def __init__(self, process: asyncio.subprocess.Process, ports: dict[str, int], channel: grpc.aio.Channel) -> None:
        self.process = process
        self.ports = ports
        self.llm: llm_pb2_grpc.LlmServiceAsyncStub = llm_pb2_grpc.LlmServiceStub(channel)
        self.channel = channel

    async def serving(self) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.llm.GetModel(llm_pb2.GetModelRequest())
                    return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.02)


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    path = tmp_path / "ports.json"
    process = await start("--port-file", str(path), "--stall-s", "0.5")
    ports = await ports_of(path)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['port']}") as channel:
        yield Started(process, ports, channel)
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_the_port_file_and_the_log_tell_where_it_listens(started: Started, tmp_path: Path) -> None:
    assert started.ports["pid"] == started.process.pid
    started.process.send_signal(signal.SIGTERM)
    _, stderr = await started.process.communicate()
    listening = next(line for line in lines(stderr) if line["event"] == "listening")
    assert (listening["port"], listening["metrics_port"]) == (started.ports["port"], started.ports["metrics_port"])
    assert started.process.returncode == 0
    assert not (tmp_path / "ports.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_a_running_request_finish(started: Started, number: signal.Signals) -> None:
    await started.serving()
    call = started.llm.Generate(order("sleep 0.05 20"))
    await call.read()
    started.process.send_signal(number)
    received = 0
    while await call.read() is not grpc.aio.EOF:
        received += 1
    assert received == 20
    assert await call.code() is grpc.StatusCode.OK
    _, stderr = await started.process.communicate()
    assert started.process.returncode == 0
    assert lines(stderr)[-1]["event"] == "stopped"


async def test_a_second_signal_ends_what_runs(started: Started) -> None:
    await started.serving()
    call = started.llm.Generate(order("sleep 0.05 1000"))
    await call.read()
    started.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    started.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    await asyncio.wait_for(started.process.communicate(), 20)
    assert started.process.returncode == 0


@pytest.mark.parametrize("word", ["die", "hang"])
async def test_a_dead_engine_ends_the_process_and_its_client_hears_first(started: Started, word: str) -> None:
    await started.serving()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in started.llm.Generate(order(word)):
            pass
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert SECRET not in repr(raised.value)
    _, stderr = await asyncio.wait_for(started.process.communicate(), 30)
    assert started.process.returncode == 70
    assert any(line["event"] == "engine_state" and line["state"] == "dead" for line in lines(stderr))


async def test_a_taken_port_is_exit_code_2_and_one_line(started: Started) -> None:
    process = await start("--port", str(started.ports["port"]))
    _, stderr = await process.communicate()
    assert process.returncode == 2
    [line] = lines(stderr)
    assert line["event"] == "not_listening"
    assert f"port {started.ports['port']} " in line["reason"]
    assert "HALFREEL_LLM_PORT" in line["reason"]


@pytest.mark.parametrize(
    ("flags", "environment", "told"),
    [
        (["--prot", "1"], {}, "--prot is not a flag of this server; did you mean --port?"),
        (
            [],
            {"HALFREEL_LLM_PROT": "1"},
            "HALFREEL_LLM_PROT is not an environment variable of this server; did",
        ),
    ],
)
async def test_a_misspelt_setting_is_exit_code_2_and_one_line(
    flags: list[str], environment: dict[str, str], told: str
) -> None:
    process = await start(*flags, **environment)
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert stderr.decode().startswith(f"halfreel-llm: {told}")
    assert stderr.decode().count("\n") == 1


async def test_told_to_stop_while_loading_it_stops(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    process = await start("--port-file", str(path))
    await ports_of(path)
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
