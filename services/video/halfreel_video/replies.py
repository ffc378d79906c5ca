"""From what the job and the model say to messages of the contract."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from halfreel.video.v1 import video_pb2
from halfreel_runtime.engine import Queued
from halfreel_video.clip import ClipRequest
from halfreel_video.events import ClipDone, Event, Preview, Stage, StageStarted, StepDone
from halfreel_video.limits import Limits
from halfreel_video.model import VideoModel
from halfreel_video.planner import Choice
from halfreel_video.text_model import TextModel
from halfreel_video.trades import TEXT_TRADES, TRADES

CONTRACT_VERSION = "1.0"
CHUNK_BYTES = 512 * 1024  # of the MP4 or a picture in one message; the contract allows 1 MiB

Response = video_pb2.GenerateResponse

_STAGES = {
    Stage.KEYFRAME: video_pb2.STAGE_KEYFRAME,
    Stage.ENCODE: video_pb2.STAGE_ENCODE,
    Stage.DENOISE: video_pb2.STAGE_DENOISE,
    Stage.DECODE: video_pb2.STAGE_DECODE,
    Stage.MUX: video_pb2.STAGE_MUX,
}


def responses(
    event: Queued | Event, clip: ClipRequest, model: VideoModel | TextModel
) -> Iterator[video_pb2.GenerateResponse]:
    """Turns one event to messages: one, but for the finished clip, whose MP4 comes in chunks before the figures."""
    if isinstance(event, Queued):
        yield Response(queued=Response.Queued(waiting_request_count=event.waiting_request_count))
    elif isinstance(event, StageStarted):
        stage = Response.StageStarted(
            stage=_STAGES[event.stage], segment_index=event.segment_index, segment_count=event.segment_count
        )
        yield Response(stage=stage)
    elif isinstance(event, StepDone):
        step = Response.Step(
            index=event.index,
            count=event.count,
            duration=_duration(event.duration_s),
            remaining=_duration(event.remaining_s),
        )
        yield Response(step=step)
    elif isinstance(event, Preview):
        yield Response(preview=Response.Preview(jpeg=event.jpeg, step_index=event.step_index))
    else:
        for offset in range(0, len(event.mp4), CHUNK_BYTES):
            data = event.mp4[offset : offset + CHUNK_BYTES]
            yield Response(video_chunk=Response.VideoChunk(offset_bytes=offset, data=data))
        for offset in range(0, len(event.last_frame), CHUNK_BYTES):
            data = event.last_frame[offset : offset + CHUNK_BYTES]
            yield Response(last_frame_chunk=Response.LastFrameChunk(offset_bytes=offset, data=data))
        yield Response(completed=_completed(event, clip, model))


def model_response(
    model: VideoModel | TextModel, limits: Limits, max_waiting_request_count: int
) -> video_pb2.GetModelResponse:
    """Tells the models, their defaults and the limits."""
    defaults = model.defaults
    folder = model.folder if isinstance(model, TextModel) else model.svd_folder
    return video_pb2.GetModelResponse(
        model_id=folder.model_id,
        keyframe_model_id="" if isinstance(model, TextModel) else model.keyframe_folder.model_id,
        architecture=folder.family.pipeline,
        revision=folder.revision,
        dtype=model.dtype_name,
        device=model.device.torch_name,
        parameter_count=model.weights.parameter_count,
        weight_bytes=model.weights.weight_bytes,
        default_width_px=defaults.width_px,
        default_height_px=defaults.height_px,
        default_frame_count=defaults.frame_count,
        default_step_count=defaults.step_count,
        default_fps=defaults.fps,
        default_motion_bucket=defaults.motion_bucket,
        default_guidance_scale=defaults.guidance_scale,
        max_width_px=limits.high("width_px"),
        max_height_px=limits.high("height_px"),
        max_frame_count=limits.high("frame_count"),
        max_waiting_request_count=max_waiting_request_count,
        contract_version=CONTRACT_VERSION,
        trades=TEXT_TRADES if isinstance(model, TextModel) else TRADES,
        words_only=isinstance(model, TextModel),
    )


def _completed(
    done: ClipDone, clip: ClipRequest, model: VideoModel | TextModel
) -> video_pb2.GenerateResponse.Completed:
    return Response.Completed(
        size_bytes=len(done.mp4),
        sha256=done.sha256,
        width_px=clip.width_px,
        height_px=clip.height_px,
        frame_count=clip.frame_count,
        fps=clip.fps,
        seed=clip.seed,
        dtype=model.dtype_name,
        device=model.device.torch_name,
        levers=done.levers.message(),
        queue_duration=_duration(done.queue_s),
        generate_duration=_duration(done.generate_s),
        stage_durations=[
            Response.StageDuration(stage=_STAGES[stage], duration=_duration(seconds))
            for stage, seconds in done.stage_s.items()
        ],
        phase_peaks=done.phase_peaks,
        rungs=done.rungs,
        nan_retry_count=done.nan_retry_count,
        trades=clip.trades,
        last_frame_size_bytes=len(done.last_frame),
        last_frame_sha256=hashlib.sha256(done.last_frame).hexdigest() if done.last_frame else "",
    )


def planned(choice: Choice, cheaper: bool) -> video_pb2.GenerateResponse:
    """Tells the plan that a clip is rendered by, and the cheaper form where it is one."""
    plan = Response.Planned(plan=choice.plan.message(), levers=choice.levers.message())
    if cheaper:
        plan.variant.CopyFrom(_variant(choice))
    return Response(plan=plan)


def plan_response(choice: Choice, variants: Sequence[Choice]) -> video_pb2.PlanMemoryResponse:
    """Tells a plan, and cheaper forms that fit."""
    return video_pb2.PlanMemoryResponse(
        plan=choice.plan.message(),
        levers=choice.levers.message(),
        variants=[_variant(variant) for variant in variants],
    )


def _variant(choice: Choice) -> video_pb2.Variant:
    return video_pb2.Variant(
        width_px=choice.wish.width_px,
        height_px=choice.wish.height_px,
        segment_frame_count=choice.wish.shape.frame_count,
        levers=choice.levers.message(),
        plan=choice.plan.message(),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
