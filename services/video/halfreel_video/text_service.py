"""halfreel.video.v1.VideoService of a text-to-video model: check, one call, map.

Its clips are not planned: no coefficients are known for such models, and none are made up.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_runtime.checks import Checks
from halfreel_runtime.engine import Engine
from halfreel_runtime.errors import FailedPrecondition, Internal
from halfreel_runtime.instruments import Instruments
from halfreel_runtime.logs import request_id_var
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video.clip import ClipRequest
from halfreel_video.counting import count_clip
from halfreel_video.events import ClipDone, Event, merge
from halfreel_video.levers import Levers
from halfreel_video.limits import MAX_SEED, Limits
from halfreel_video.replies import model_response, responses
from halfreel_video.settings import SERVICE, VideoSettings
from halfreel_video.text_job import TextClipJob
from halfreel_video.text_model import TextModel
from halfreel_video.trades import TEXT_TRADES, check_trades

Context = grpc.aio.ServicerContext[Any, Any]

# As far beyond its own length as a model can be stretched; clips of words alone can't be chained.
_MAX_LENGTH_RATIO = 4


class TextVideoService(video_pb2_grpc.VideoServiceServicer):
    """Serves one text-to-video model, once `model_loaded` has been called."""

    def __init__(
        self,
        engine: Engine[Event],
        memory: MemoryMonitor,
        settings: VideoSettings,
        instruments: Instruments | None = None,
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._instruments = instruments or Instruments(SERVICE)
        self._settings = settings
        self._served: tuple[TextModel, Limits] | None = None

    def model_loaded(self, model: TextModel) -> None:
        """Takes the model; called once, in the engine's thread, before the engine serves."""
        longest = _MAX_LENGTH_RATIO * model.defaults.frame_count
        limits = Limits.of(self._settings, model.defaults, side_step_px=model.side_step_px, max_frame_count=longest)
        self._served = model, limits
        self._memory.set_levers(
            [
                gpu_pb2.LeverStatus(lever="precision", value=model.dtype_name),
                *model.levers.statuses(),
            ]
        )
        self._instruments.model(model.folder.model_id, model.dtype_name, model.device.torch_name)

    async def Generate(
        self, request: video_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[video_pb2.GenerateResponse]:
        """Renders one clip."""
        model, limits = self._serving()
        _check_words(request, model)
        limits.check(request)
        clip = _clip(request, limits, model)
        job = TextClipJob(model, clip, self._memory, self._instruments)
        async with aclosing(self._engine.run(job.steps, merge=merge)) as events:
            async for event in events:
                if isinstance(event, ClipDone):
                    count_clip(self._instruments, clip, event)
                for response in responses(event, clip, model):
                    yield response

    async def PlanMemory(self, request: video_pb2.PlanMemoryRequest, context: Context) -> video_pb2.PlanMemoryResponse:
        """Refuses: see the module."""
        model, limits = self._serving()
        limits.check_plan(request)
        raise FailedPrecondition(
            f"clips of {model.folder.model_id} are not planned: what a {model.folder.family.pipeline} takes is not "
            "known before it runs; watch MemoryStatus, whose peaks tell what its clips took",
            reason="NOT_PLANNED",
        )

    async def MemoryStatus(
        self, request: video_pb2.MemoryStatusRequest, context: Context
    ) -> video_pb2.MemoryStatusResponse:
        """Tells the memory, without asking the engine."""
        return video_pb2.MemoryStatusResponse(report=self._memory.report())

    async def GetModel(self, request: video_pb2.GetModelRequest, context: Context) -> video_pb2.GetModelResponse:
        """Tells the model."""
        model, limits = self._serving()
        return model_response(model, limits, self._settings.max_waiting_request_count)

    def _serving(self) -> tuple[TextModel, Limits]:
        self._engine.require_serving()
        if self._served is None:
            raise Internal("the engine serves without a model")
        return self._served


def _check_words(request: video_pb2.GenerateRequest, model: TextModel) -> None:
    """Checks what a text-to-video model can't do.

    Raises:
        InvalidArgument: INVALID_FIELD.
    """
    checks, chunk = Checks(), model.levers.decode_chunk_frame_count
    checks.require(bool(request.prompt.strip()), "prompt", "is empty; this model makes clips from words alone")
    checks.require(not request.image, "image", "is given; this model makes clips from words alone")
    if request.HasField("decode_chunk_frame_count"):
        checks.between("decode_chunk_frame_count", request.decode_chunk_frame_count, chunk, chunk, "frames")
    if request.HasField("levers"):
        same = Levers.read(request.levers) == model.levers
        checks.require(same, "levers", f"are not this model's, which has one way: {chunk} frames decoded at once")
    check_trades(request.trades, checks, TEXT_TRADES)
    checks.done()


def _clip(request: video_pb2.GenerateRequest, limits: Limits, model: TextModel) -> ClipRequest:
    frame_count = int(limits.value(request, "frame_count"))
    return ClipRequest(
        request_id=request.request_id or request_id_var.get(),
        prompt=request.prompt,
        image=None,
        width_px=int(limits.value(request, "width_px")),
        height_px=int(limits.value(request, "height_px")),
        frame_count=frame_count,
        step_count=int(limits.value(request, "step_count")),
        fps=int(limits.value(request, "fps")),
        motion_bucket=int(limits.value(request, "motion_bucket")),
        guidance_scale=limits.value(request, "guidance_scale"),
        seed=request.seed if request.HasField("seed") else secrets.randbelow(MAX_SEED + 1),
        preview=request.preview,
        levers=model.levers,
        segment_frame_count=frame_count,
        trades=tuple(request.trades),
        last_frame=request.last_frame,
    )
