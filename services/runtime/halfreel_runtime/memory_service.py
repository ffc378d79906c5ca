"""halfreel.gpu.v1.MemoryService, as every model server serves it.

It does not know the model: reports come from the monitor, and what changes something waits for its turn in the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from halfreel.gpu.v1 import gpu_pb2, gpu_pb2_grpc
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.checks import Checks
from halfreel_runtime.engine import Engine
from halfreel_runtime.errors import OutOfMemory, WakeFailed
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.sleeper import Moved, Sleeper

MIN_INTERVAL_S, MAX_INTERVAL_S, DEFAULT_INTERVAL_S = 0.1, 60.0, 1.0
# Methods whose streams only the client, or the end of the server, ends.
WATCH_METHODS = ("WatchMemory",)


class MemoryService(gpu_pb2_grpc.MemoryServiceServicer):
    """Memory of one model server.

    Args:
        monitor: where the reports come from; its history is kept from here on.
        engine: in whose thread memory is cleared and models sleep.
        sleeper: the engine's gate; None for a model that can't sleep.
    """

    def __init__(self, monitor: MemoryMonitor, engine: Engine[Any], sleeper: Sleeper | None = None) -> None:
        self._monitor = monitor
        self._engine = engine
        self._sleeper = sleeper if sleeper is not None else Sleeper(monitor)
        monitor.keep_history()

    async def WatchMemory(
        self, request: gpu_pb2.WatchMemoryRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[gpu_pb2.WatchMemoryResponse]:
        """One report at once, then one at every interval."""
        interval_s = DEFAULT_INTERVAL_S
        if request.HasField("interval"):
            interval_s = request.interval.ToMilliseconds() / 1000
        checks = Checks()
        checks.between("interval", interval_s, MIN_INTERVAL_S, MAX_INTERVAL_S, "s")
        checks.done()
        history = self._monitor.history() if request.include_history else []
        while True:
            yield gpu_pb2.WatchMemoryResponse(report=self._monitor.report(), history=history)
            history = []
            await asyncio.sleep(interval_s)

    async def ResetPeaks(
        self, request: gpu_pb2.ResetPeaksRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> gpu_pb2.ResetPeaksResponse:
        """The peaks as they were, and from now on new ones."""
        report = self._monitor.report()
        self._monitor.reset_peaks()
        return gpu_pb2.ResetPeaksResponse(report=report)

    async def ClearMemory(
        self, request: gpu_pb2.ClearMemoryRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> gpu_pb2.ClearMemoryResponse:
        """Waits for the engine's turn, and clears there."""
        freed = 0

        def clear(token: CancelToken) -> Iterator[Any]:
            nonlocal freed
            freed = self._monitor.clear()
            yield from ()

        async for _ in self._engine.run(clear, needs_model=False):
            pass
        return gpu_pb2.ClearMemoryResponse(freed_bytes=freed, report=self._monitor.report())

    async def Sleep(
        self, request: gpu_pb2.SleepRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> gpu_pb2.SleepResponse:
        """Waits for the engine's turn, and sends the model to sleep there."""
        moved = Moved()

        def sleep(token: CancelToken) -> Iterator[Any]:
            nonlocal moved
            moved = self._sleeper.sleep()
            yield from ()

        async for _ in self._engine.run(sleep, needs_model=False):
            pass
        return gpu_pb2.SleepResponse(
            freed_bytes=moved.freed_bytes, duration=_duration(moved.seconds), report=self._monitor.report()
        )

    async def Wake(
        self, request: gpu_pb2.WakeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> gpu_pb2.WakeResponse:
        """A job that does nothing, for which the engine wakes the model."""
        before = self._sleeper.woken_count

        def nothing(token: CancelToken) -> Iterator[Any]:
            yield from ()

        try:
            async for _ in self._engine.run(nothing):
                pass
        except WakeFailed as error:
            if "needed_bytes" not in error.metadata:
                raise
            raise OutOfMemory(error.message, metadata=error.metadata, retry_after_s=error.retry_after_s) from None
        seconds = self._sleeper.last_wake_s if self._sleeper.woken_count > before else 0.0
        return gpu_pb2.WakeResponse(duration=_duration(seconds), report=self._monitor.report())


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
