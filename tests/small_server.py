"""A small but real server on the runtime: the language model's contract, answered by arithmetic.

What a request's first message says is done: "count 5", "sleep 0.2 10" (seconds a step, steps), "raise", "die", "hang",
"silent 5", "blob 1000", "compute 5" (seconds), "recite" (a line of the weights). Run as a program it is a process for
tests of signals and exit codes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from halfreel.gpu.v1 import gpu_pb2_grpc
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.checks import Checks
from halfreel_runtime.device import find_device
from halfreel_runtime.engine import Engine, Queued
from halfreel_runtime.errors import FatalError
from halfreel_runtime.logs import configure_logs
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_service import WATCH_METHODS, MemoryService
from halfreel_runtime.metrics import ServerMetrics
from halfreel_runtime.server import Server
from halfreel_runtime.settings import ModelServerSettings, load_settings
from halfreel_runtime.sleeper import Sleeper

MIB = 2**20
WEIGHT_BYTES = 8 * MIB
LLM = "halfreel.llm.v1.LlmService"
MEMORY = "halfreel.gpu.v1.MemoryService"
SECRET = "/srv/secret/model.safetensors"


class SmallModel:
    """Weights that really leave the process's memory, for a file, and come back.

    Where a device is named that it shares with others, it locks that file while it is awake: two that were awake
    at once would fail.
    """

    def __init__(self, device: Path | None = None) -> None:
        self.weights: mmap.mmap | None = mmap.mmap(-1, WEIGHT_BYTES)
        self.weights[:] = (b"weight" * (WEIGHT_BYTES // 6 + 1))[:WEIGHT_BYTES]
        with tempfile.TemporaryFile() as file:
            file.truncate(WEIGHT_BYTES)
            self.file = mmap.mmap(file.fileno(), WEIGHT_BYTES)
        self.device = device
        self.wakes_fail = 0
        self.prepared = False
        self._occupy()

    @property
    def weight_bytes(self) -> int:
        return WEIGHT_BYTES

    def prepare_sleep(self) -> None:
        self.prepared = True

    def sleep(self) -> None:
        assert self.weights is not None
        self.file[:] = self.weights
        self.file.madvise(mmap.MADV_DONTNEED)
        self.weights.close()
        self.weights = None
        if self.device is not None:
            os.close(self.lock)

    def wake(self) -> None:
        assert self.weights is None
        if self.wakes_fail:
            self.wakes_fail -= 1
            raise MemoryError("no room")
        self._occupy()
        self.weights = mmap.mmap(-1, WEIGHT_BYTES)
        self.weights[:] = self.file[:]
        self.file.madvise(mmap.MADV_DONTNEED)

    def _occupy(self) -> None:
        if self.device is not None:
            self.lock = os.open(self.device, os.O_RDWR | os.O_CREAT)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


class SmallLlm(llm_pb2_grpc.LlmServiceServicer):
    def __init__(self, engine: Engine[str], memory: MemoryMonitor, sleeper: Sleeper) -> None:
        self.engine = engine
        self.sleeper = sleeper
        self.memory = memory
        self.step_count = 0
        self.model: SmallModel | None = None

    def load(self, device: Path | None = None) -> None:
        """For the engine's thread, as a server loads its model."""
        self.model = SmallModel(device)
        self.sleeper.model_loaded(self.model)

    def steps(self, text: str, token: CancelToken) -> Iterator[str]:
        word, *numbers = text.split()
        with self.memory.request("small"), self.memory.phase("decode"):
            if word == "count":
                for number in range(int(numbers[0])):
                    yield str(number)
            elif word == "sleep":
                for number in range(int(numbers[1])):
                    time.sleep(float(numbers[0]))
                    self.step_count += 1
                    yield str(number)
            elif word == "silent":
                for _ in range(int(numbers[0]) * 100):
                    time.sleep(0.01)
                    token.raise_if_cancelled()
            elif word == "blob":
                for _ in range(int(numbers[0])):
                    yield "x" * 100_000
            elif word == "compute":
                import torch

                torch.set_num_threads(1)
                weights = torch.randn(512, 512)
                values = torch.randn(512, 512)
                ends = time.monotonic() + float(numbers[0])
                while time.monotonic() < ends:
                    values = torch.tanh(weights @ values)
                    yield "."
            elif word == "recite":
                assert self.model is not None
                assert self.model.weights is not None
                yield self.model.weights[:24].decode()
            elif word == "die":
                raise FatalError(f"broken at {SECRET}")
            elif word == "hang":
                time.sleep(60)
            else:
                raise RuntimeError(f"cannot read {SECRET}")

    async def Generate(self, request: llm_pb2.GenerateRequest, context: Any) -> AsyncIterator[llm_pb2.GenerateResponse]:
        text = request.messages[0].content if request.messages else ""
        checks = Checks()
        checks.text("messages", text, max_characters=100_000)
        checks.between("temperature", request.temperature, 0, 2)
        checks.done()
        async for event in self.engine.run(lambda token: self.steps(text, token)):
            if isinstance(event, Queued):
                queued = llm_pb2.GenerateResponse.Queued(waiting_request_count=event.waiting_request_count)
                yield llm_pb2.GenerateResponse(queued=queued)
            else:
                yield llm_pb2.GenerateResponse(text_delta=llm_pb2.GenerateResponse.TextDelta(text=event))

    async def MemoryStatus(self, request: Any, context: Any) -> llm_pb2.MemoryStatusResponse:
        return llm_pb2.MemoryStatusResponse(report=self.memory.report())

    async def PlanMemory(self, request: Any, context: Any) -> llm_pb2.PlanMemoryResponse:
        return llm_pb2.PlanMemoryResponse()

    async def GetModel(self, request: Any, context: Any) -> llm_pb2.GetModelResponse:
        self.engine.require_serving()
        return llm_pb2.GetModelResponse(model_id="small")


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


def order(text: str, **fields: Any) -> llm_pb2.GenerateRequest:
    """A request that makes the small server do what the text says."""
    return llm_pb2.GenerateRequest(messages=[llm_pb2.Message(role=llm_pb2.ROLE_USER, content=text)], **fields)


def small_server(settings: ModelServerSettings) -> tuple[Server, SmallLlm]:
    device = find_device("cpu")
    memory = MemoryMonitor(device)
    capacity_bytes = memory.report().host.total_bytes
    sleeper = Sleeper.of(settings, memory, service="llm", capacity_bytes=capacity_bytes)
    engine: Engine[str] = Engine(
        name="small",
        max_waiting_count=settings.max_waiting_request_count,
        max_event_count=64,
        stall_s=settings.stall_s,
        gate=sleeper,
    )
    servicer = SmallLlm(engine, memory, sleeper)
    server = Server(settings, service="llm", metrics=ServerMetrics("llm", engine, memory))
    server.add(llm_pb2_grpc.add_LlmServiceServicer_to_server, servicer, LLM, engine)
    server.add(
        gpu_pb2_grpc.add_MemoryServiceServicer_to_server,
        MemoryService(memory, engine, sleeper),
        MEMORY,
        engine,
        watch_methods=WATCH_METHODS,
    )
    return server, servicer


if __name__ == "__main__":
    configure_logs("info", "llm")
    the_server, the_servicer = small_server(load_settings(ModelServerSettings, "llm", sys.argv[1:]))
    the_device = Path(os.environ["SMALL_DEVICE"]) if "SMALL_DEVICE" in os.environ else None

    def prepare() -> None:
        time.sleep(0.1)
        the_servicer.load(the_device)

    the_servicer.engine.start(prepare)
    the_server.main()
