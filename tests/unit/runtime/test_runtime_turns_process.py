"""Two server processes that share a device in turns: a hundred mixed requests, one of them killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import small_server
from small_server import order

from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc

TURN_S = 0.3
LONGEST_S = 0.16  # of one request
REQUEST_COUNT = 100
# What a look at the folder, a swap and, most of all, a machine that others use as well add to a wait.
MARGIN_S = 10.0


class Member:
    """A server process, started again where it dies, as a supervisor does."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.start_count = 0
        self.finished: list[float] = []
        self.channels: list[grpc.aio.Channel] = []
        self.log = (folder / f"{name}.log").open("ab")

    async def start(self) -> None:
        self.start_count += 1
        port_file = self.folder / f"{self.name}-{self.start_count}.json"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HALFREEL_")}
        environment["SMALL_DEVICE"] = str(self.folder / "device")
        flags = ["--turns", "on", "--turns-dir", str(self.folder / "turns"), "--turn-s", str(TURN_S)]
        flags += ["--port-file", str(port_file), "--max-waiting-request-count", "100"]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, small_server.__file__, *flags, stderr=self.log, env=environment
        )
        async with asyncio.timeout(60):
            while not port_file.exists():
                await asyncio.sleep(0.02)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{json.loads(port_file.read_text())['port']}")
        self.channels.append(self.channel)  # closed at the end: that would cancel calls which are under way
        self.llm: llm_pb2_grpc.LlmServiceAsyncStub = llm_pb2_grpc.LlmServiceStub(self.channel)

    async def stop(self) -> None:
        for channel in self.channels:
            await channel.close()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def do(self, words: str) -> str:
        """The answer, asked for until the server gives it: it may be loading, or be started again."""
        async with asyncio.timeout(150):
            while True:
                process = self.process
                try:
                    stream = self.llm.Generate(order(words))
                    text = "".join([response.text_delta.text async for response in stream])
                except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                    # A connection that breaks in the middle of a call is told in several ways.
                    broken = process.returncode is not None or self.process is not process
                    told = isinstance(error, grpc.aio.AioRpcError) and error.code() is not grpc.StatusCode.UNAVAILABLE
                    if told and not broken:
                        raise
                    await asyncio.sleep(0.05)
                else:
                    self.finished.append(time.monotonic())
                    return text

    async def model_state(self) -> int:
        return int((await self.llm.MemoryStatus(llm_pb2.MemoryStatusRequest(), timeout=20)).report.model_state)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{self.name}.log").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


async def test_a_hundred_mixed_requests_on_two_servers_of_one_device_one_of_which_is_killed(folder: Path) -> None:
    members = [Member("one", folder), Member("two", folder)]
    await asyncio.gather(*(each.start() for each in members))
    try:
        began_at = time.monotonic()
        killed_at, killed_time = await _work(members)
        ended_at = time.monotonic()
    finally:
        for each in members:
            await each.stop()
            each.log.close()
    _judge(members, began_at, killed_at, killed_time, ended_at)


async def _work(members: list[Member]) -> tuple[float, str]:
    dice = random.Random(7)
    jobs = [(dice.choice(members), dice.randrange(1, 9)) for _ in range(REQUEST_COUNT)]
    at_once = asyncio.Semaphore(24)
    killed_at = 0.0
    killed_time = ""

    async def one(member: Member, steps: int) -> None:
        async with at_once:
            expected = "".join(str(each) for each in range(steps))
            assert await member.do(f"sleep {LONGEST_S / 8} {steps}") == expected
            assert await member.do("recite") == "weight" * 4

    async def kill_the_holder() -> None:
        nonlocal killed_at, killed_time
        while sum(len(each.finished) for each in members) < 60:
            await asyncio.sleep(0.01)
        while True:
            for each in members:
                if await each.model_state() == gpu_pb2.MODEL_STATE_AWAKE:
                    killed_time = datetime.now(UTC).isoformat(timespec="milliseconds")
                    each.process.send_signal(signal.SIGKILL)
                    await each.process.wait()
                    killed_at = time.monotonic()
                    await each.start()
                    return

    await asyncio.gather(kill_the_holder(), *(one(*job) for job in jobs))
    return killed_at, killed_time


def _judge(members: list[Member], began_at: float, killed_at: float, killed_time: str, ended_at: float) -> None:
    seconds = ended_at - began_at
    assert sum(len(each.finished) for each in members) == 2 * REQUEST_COUNT
    assert killed_at
    assert sorted(each.start_count for each in members) == [1, 2]
    wakes = []
    for member in members:
        events = member.events()
        # The model locks its device while it is awake: had the two been awake at once, a wake would have failed.
        assert not [each for each in events if each["level"] in ("warning", "error", "critical")]
        wakes += [(each["time"], member.name) for each in events if each["event"] == "model_awake"]
    # Nobody starves: up to the kill both have work, and they wake by turns,
    before = [name for when, name in sorted(wakes) if when < killed_time]
    assert all(one != other for one, other in itertools.pairwise(before)), before
    # and a server waits for no longer than the other's time and its last request.
    longest_wait_s = max(max(_gaps(each, began_at, killed_at)) for each in members)
    figures = {
        "seconds": round(seconds, 2),
        "swaps": len(wakes),
        "longest_wait_s": round(longest_wait_s, 3),
        "requests": {each.name: len(each.finished) for each in members},
    }
    print(json.dumps(figures))
    assert longest_wait_s < TURN_S + 2 * LONGEST_S + MARGIN_S, figures
    # Nor do they thrash: a turn lasts its time while both have work, however many requests that are.
    assert len(wakes) <= 2 * (seconds / TURN_S / 2 + 3), figures
    assert len(wakes) >= 4, figures


def _gaps(member: Member, began_at: float, killed_at: float) -> list[float]:
    """Times between two finished requests while all had work: up to the kill, after which one was away."""
    times = [began_at, *(each for each in member.finished if each < killed_at)]
    return [later - sooner for sooner, later in itertools.pairwise(times)] or [0.0]


async def test_an_idle_holder_gives_way_at_once_and_a_waiting_server_tells_its_memory(folder: Path) -> None:
    first, second = Member("one", folder), Member("two", folder)
    try:
        await first.start()
        assert await first.do("recite") == "weight" * 4
        await second.start()
        assert await second.do("recite") == "weight" * 4
        assert await first.model_state() == gpu_pb2.MODEL_STATE_ASLEEP
        running = asyncio.create_task(second.do("sleep 0.05 100"))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(first.do("recite"))
        await asyncio.sleep(0.3)
        assert await first.model_state() == gpu_pb2.MODEL_STATE_ASLEEP  # it waits for its turn, and answers
        assert not waiting.done()
        assert await running
        began_at = time.monotonic()
        assert await waiting == "weight" * 4
        assert time.monotonic() - began_at < MARGIN_S
        # A client that has gone leaves no wish behind.
        running = asyncio.create_task(first.do("sleep 0.05 60"))
        gone = second.llm.Generate(order("recite"))
        await asyncio.sleep(0.15)
        gone.cancel()
        assert await running
        await asyncio.sleep(0.2)
        assert await first.model_state() == gpu_pb2.MODEL_STATE_AWAKE
        assert not list((folder / "turns" / "cpu").glob("wish-*"))
    finally:
        for each in (first, second):
            with contextlib.suppress(AttributeError):
                await each.stop()
            each.log.close()
