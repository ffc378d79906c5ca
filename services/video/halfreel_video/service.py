"""halfreel.video.v1.VideoService: check, one call, map."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_runtime.engine import Engine
from halfreel_runtime.errors import Internal
from halfreel_runtime.logs import request_id_var
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video.events import Event, merge
from halfreel_video.job import ClipJob
from halfreel_video.limits import Limits
from halfreel_video.model import VideoModel
from halfreel_video.picture import decode_picture
from halfreel_video.replies import model_response, responses
from halfreel_video.settings import VideoSettings

Context = grpc.aio.ServicerContext[Any, Any]


class VideoService(video_pb2_grpc.VideoServiceServicer):
    """Serves one video model, once `model_loaded` has been called."""

    def __init__(self, engine: Engine[Event], memory: MemoryMonitor, settings: VideoSettings) -> None:
        self._engine = engine
        self._memory = memory
        self._settings = settings
        self._served: tuple[VideoModel, Limits] | None = None

    def model_loaded(self, model: VideoModel) -> None:
        """Takes the model; called once, in the engine's thread, before the engine serves."""
        self._served = model, Limits.of(self._settings, model.defaults)

    async def Generate(
        self, request: video_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[video_pb2.GenerateResponse]:
        """Renders one clip."""
        model, limits = self._serving()
        limits.check(request)
        image = None
        if request.image:
            image = await asyncio.to_thread(decode_picture, request.image, *limits.size_px(request))
        clip = limits.clip(request, request.request_id or request_id_var.get(), image)
        job = ClipJob(model, clip, self._memory)
        async with aclosing(self._engine.run(job.steps, merge=merge)) as events:
            async for event in events:
                for response in responses(event, clip, model):
                    yield response

    async def MemoryStatus(
        self, request: video_pb2.MemoryStatusRequest, context: Context
    ) -> video_pb2.MemoryStatusResponse:
        """Tells the memory, without asking the engine."""
        return video_pb2.MemoryStatusResponse(report=self._memory.report())

    async def GetModel(self, request: video_pb2.GetModelRequest, context: Context) -> video_pb2.GetModelResponse:
        """Tells the models."""
        model, limits = self._serving()
        return model_response(model, limits, self._settings.max_waiting_request_count)

    def _serving(self) -> tuple[VideoModel, Limits]:
        self._engine.require_serving()
        if self._served is None:
            raise Internal("the engine serves without a model")
        return self._served
