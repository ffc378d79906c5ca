"""Clips from a model server: requests, events and the models of halfreel.video.v1, as values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from halfreel.video.v1 import video_pb2
from halfreel_client.clock import member_of, seconds_of
from halfreel_client.levers import Levers, Variant, levers_from, levers_message, variant_from
from halfreel_client.memory import MemoryProfile, PhasePeak, phase_peaks_from, profile_number
from halfreel_client.text import Queued


class Stage(StrEnum):
    """A part of the work on one clip."""

    UNKNOWN = "unknown"
    KEYFRAME = "keyframe"
    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"
    MUX = "mux"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRequest:
    """What to render, from words or from a picture; None leaves the choice to the model. Limits: see video.proto."""

    prompt: str = ""
    image: bytes = b""
    request_id: str = ""
    width_px: int | None = None
    height_px: int | None = None
    frame_count: int | None = None
    step_count: int | None = None
    fps: int | None = None
    motion_bucket: int | None = None
    guidance_scale: float | None = None
    decode_chunk_frame_count: int | None = None
    seed: int | None = None
    preview: bool = False
    profile: MemoryProfile | None = None
    levers: Levers | None = None
    allow_cheaper: bool = False
    trades: tuple[str, ...] = ()
    last_frame: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """What the clip will take of memory, by which levers, and the cheaper form that is rendered, where one is."""

    peak_reserved_bytes: int
    levers: Levers
    variant: Variant | None


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage began; a chained clip has several segments, counted from 0."""

    stage: Stage
    segment_index: int
    segment_count: int


@dataclass(frozen=True, slots=True)
class Step:
    """A denoising step ended; `index` counts from 1, over all segments."""

    index: int
    count: int
    duration_s: float
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Preview:
    """A rough picture of the work so far, as JPEG."""

    jpeg: bytes
    step_index: int


@dataclass(frozen=True, slots=True)
class VideoChunk:
    """A piece of the MP4."""

    offset_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LastFrameChunk:
    """A piece of the last frame's PNG, where it was asked for."""

    offset_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StageDuration:
    """What one stage took."""

    stage: Stage
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCompleted:
    """The whole clip was sent; the same request with this seed and these levers gives the same bytes."""

    size_bytes: int
    sha256: str
    width_px: int
    height_px: int
    frame_count: int
    fps: int
    seed: int
    dtype: str
    device: str
    levers: Levers
    queue_duration_s: float
    generate_duration_s: float
    stage_durations: tuple[StageDuration, ...]
    phase_peaks: tuple[PhasePeak, ...]
    rungs: tuple[str, ...]
    nan_retry_count: int
    trades: tuple[str, ...]
    last_frame_size_bytes: int
    last_frame_sha256: str


ClipEvent = Queued | Planned | StageStarted | Step | Preview | VideoChunk | LastFrameChunk | ClipCompleted


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoModel:
    """The models that a video server owns."""

    model_id: str
    revision: str
    keyframe_model_id: str
    architecture: str
    dtype: str
    device: str
    parameter_count: int
    weight_bytes: int
    default_width_px: int
    default_height_px: int
    default_frame_count: int
    default_step_count: int
    default_fps: int
    default_motion_bucket: int
    default_guidance_scale: float
    max_width_px: int
    max_height_px: int
    max_frame_count: int
    max_waiting_request_count: int
    contract_version: str
    trades: tuple[str, ...]
    words_only: bool


def clip_request(request: ClipRequest) -> video_pb2.GenerateRequest:
    """The message of a request."""
    named = {field.name: getattr(request, field.name) for field in fields(request)}
    named["profile"] = None if request.profile is None else profile_number(request.profile)
    named["levers"] = None if request.levers is None else levers_message(request.levers)
    return video_pb2.GenerateRequest(**named)


def _stage_from(value: int) -> Stage:
    return member_of(Stage, video_pb2.Stage, value, "STAGE_")


def _completed_from(message: video_pb2.GenerateResponse.Completed) -> ClipCompleted:
    return ClipCompleted(
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        width_px=message.width_px,
        height_px=message.height_px,
        frame_count=message.frame_count,
        fps=message.fps,
        seed=message.seed,
        dtype=message.dtype,
        device=message.device,
        levers=levers_from(message.levers),
        queue_duration_s=seconds_of(message.queue_duration),
        generate_duration_s=seconds_of(message.generate_duration),
        stage_durations=tuple(
            StageDuration(_stage_from(item.stage), seconds_of(item.duration)) for item in message.stage_durations
        ),
        phase_peaks=phase_peaks_from(message.phase_peaks),
        rungs=tuple(message.rungs),
        nan_retry_count=message.nan_retry_count,
        trades=tuple(message.trades),
        last_frame_size_bytes=message.last_frame_size_bytes,
        last_frame_sha256=message.last_frame_sha256,
    )


def clip_event_from(message: video_pb2.GenerateResponse) -> ClipEvent | None:
    """The event of a message; None for a kind of event that is newer than this client."""
    match message.WhichOneof("event"):
        case "queued":
            return Queued(message.queued.waiting_request_count)
        case "plan":
            plan = message.plan
            variant = variant_from(plan.variant) if plan.HasField("variant") else None
            return Planned(plan.plan.peak_reserved_bytes, levers_from(plan.levers), variant)
        case "stage":
            stage = message.stage
            return StageStarted(_stage_from(stage.stage), stage.segment_index, stage.segment_count)
        case "step":
            step = message.step
            return Step(step.index, step.count, seconds_of(step.duration), seconds_of(step.remaining))
        case "preview":
            return Preview(message.preview.jpeg, message.preview.step_index)
        case "video_chunk":
            return VideoChunk(message.video_chunk.offset_bytes, message.video_chunk.data)
        case "last_frame_chunk":
            return LastFrameChunk(message.last_frame_chunk.offset_bytes, message.last_frame_chunk.data)
        case "completed":
            return _completed_from(message.completed)
    return None


def video_model_from(message: video_pb2.GetModelResponse) -> VideoModel:
    """The models of a message."""
    named = {field.name: getattr(message, field.name) for field in fields(VideoModel)}
    return VideoModel(**{**named, "trades": tuple(message.trades)})
