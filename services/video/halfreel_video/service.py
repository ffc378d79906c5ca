"""halfreel.video.v1.VideoService: check, one call, map."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_runtime.engine import Engine, Queued
from halfreel_runtime.errors import Internal
from halfreel_runtime.instruments import Instruments
from halfreel_runtime.logs import request_id_var
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_limit import MemoryLimit
from halfreel_runtime.plan import Profile
from halfreel_runtime.sleeper import Sleeper
from halfreel_video.admission import Admission, predictions
from halfreel_video.counting import count_admitted, count_clip, refusals_counted
from halfreel_video.events import ClipDone, Event, merge
from halfreel_video.job import ClipJob
from halfreel_video.levers import Levers
from halfreel_video.limits import Limits
from halfreel_video.model import VideoModel
from halfreel_video.picture import decode_picture
from halfreel_video.replies import model_response, plan_response, planned, responses
from halfreel_video.settings import SERVICE, VideoSettings

Context = grpc.aio.ServicerContext[Any, Any]


class VideoService(video_pb2_grpc.VideoServiceServicer):
    """Serves one video model, once `model_loaded` has been called."""

    def __init__(
        self,
        engine: Engine[Event],
        memory: MemoryMonitor,
        settings: VideoSettings,
        instruments: Instruments | None = None,
        sleeper: Sleeper | None = None,
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._instruments = instruments or Instruments(SERVICE)
        self._settings = settings
        self._sleeper = sleeper if sleeper is not None else Sleeper(memory)
        self._served: tuple[VideoModel, Limits, Admission] | None = None

    def model_loaded(self, model: VideoModel) -> None:
        """Takes the model; called once, in the engine's thread, before the engine serves."""
        limits, limit = Limits.of(self._settings, model.defaults), MemoryLimit.of(self._settings, model.device)
        admission = Admission(model, limits, self._memory, limit, Profile(self._settings.memory_profile), self._sleeper)
        limit.enforce(admission.context_bytes)
        self._served = model, limits, admission
        self._memory.add_suggester(admission.suggestions)
        self.tell_levers()
        self._instruments.model(model.svd_folder.model_id, model.dtype_name, model.device.torch_name)

    def tell_levers(self) -> None:
        """Has memory reports tell the levers of a plain clip as they are from now on; the model has been loaded."""
        model, _, admission = self._loaded()
        self._memory.set_levers(
            [
                gpu_pb2.LeverStatus(lever="profile", value=self._settings.memory_profile),
                gpu_pb2.LeverStatus(lever="precision", value=model.dtype_name),
                *admission.usual_levers().statuses(),
            ]
        )

    def check_next(self) -> bool | None:
        """Tries a piece more of the fused blocks, in the engine's thread.

        Returns:
            Whether there is more to be done; None where nothing of it can be done now.
        """
        model, _, _ = self._loaded()
        left = [model.layout.check_next()]
        if left == [False]:
            left += [each.check_next() for each in model.layout.replicas]
        if any(left):
            return True
        if None in left:
            return None
        self.tell_levers()
        return False

    def usual_levers(self) -> Levers:
        """Those of the clip that a request gets which names nothing; the model has been loaded."""
        _, _, admission = self._loaded()
        return admission.usual_levers()

    async def Generate(
        self, request: video_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[video_pb2.GenerateResponse]:
        """Renders one clip."""
        model, limits, admission = self._serving()
        limits.check(request)
        with refusals_counted(self._instruments):
            choice, cheaper = await asyncio.to_thread(admission.admit, request)
        count_admitted(self._instruments, choice.plan.verdict.name.lower(), cheaper=cheaper)
        image = None
        if request.image:
            size = choice.wish.width_px, choice.wish.height_px
            image = await asyncio.to_thread(decode_picture, request.image, *size)
        clip = limits.clip(request, choice, request.request_id or request_id_var.get(), image)
        job = ClipJob(model, clip, self._memory, predictions(choice, model), self._instruments)
        async with aclosing(self._engine.run(job.steps, merge=merge)) as events:
            async for event in events:
                if isinstance(event, ClipDone):
                    count_clip(self._instruments, clip, event)
                for response in responses(event, clip, model):
                    yield response
                if isinstance(event, Queued):
                    yield planned(choice, cheaper)

    async def PlanMemory(self, request: video_pb2.PlanMemoryRequest, context: Context) -> video_pb2.PlanMemoryResponse:
        """Plans one clip."""
        _, limits, admission = self._serving()
        limits.check_plan(request)
        return plan_response(*await asyncio.to_thread(admission.plan, request))

    async def MemoryStatus(
        self, request: video_pb2.MemoryStatusRequest, context: Context
    ) -> video_pb2.MemoryStatusResponse:
        """Tells the memory, without asking the engine."""
        return video_pb2.MemoryStatusResponse(report=self._memory.report())

    async def GetModel(self, request: video_pb2.GetModelRequest, context: Context) -> video_pb2.GetModelResponse:
        """Tells the models."""
        model, limits, _ = self._serving()
        return model_response(model, limits, self._settings.max_waiting_request_count)

    def _serving(self) -> tuple[VideoModel, Limits, Admission]:
        self._engine.require_serving()
        return self._loaded()

    def _loaded(self) -> tuple[VideoModel, Limits, Admission]:
        if self._served is None:
            raise Internal("the engine serves without a model")
        return self._served
