"""halfreel.gpu.v1.MemoryService, as every model server serves it.

It does not know the model: reports come from the monitor, and clearing waits for its turn in the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from halfreel.gpu.v1 import gpu_pb2, gpu_pb2_grpc
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.checks import Checks
from halfreel_runtime.engine import Engine
from halfreel_runtime.memory import MemoryMonitor

MIN_INTERVAL_S, MAX_INTERVAL_S, DEFAULT_INTERVAL_S = 0.1, 60.0, 1.0
# Methods whose streams only the client, or the end of the server, ends.
WATCH_METHODS = ("WatchMemory",)


class MemoryService(gpu_pb2_grpc.MemoryServiceServicer):
    """Memory of one model server."""

    def __init__(self, monitor: MemoryMonitor, engine: Engine[Any]) -> None:
        self._monitor = monitor
        self._engine = engine

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
        while True:
            yield gpu_pb2.WatchMemoryResponse(report=self._monitor.report())
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

        async for _ in self._engine.run(clear):
            pass
        return gpu_pb2.ClearMemoryResponse(freed_bytes=freed, report=self._monitor.report())
