"""A film and its parts: the resources of halfreel.gateway.v1, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from halfreel.gateway.v1 import gateway_pb2
from halfreel_client.clock import member_of, seconds_of, time_of
from halfreel_client.errors import FailedPrecondition
from halfreel_client.film_settings import FilmSettings, settings_from
from halfreel_client.levers import Levers, Variant, levers_from, variant_from
from halfreel_client.memory import PhasePeak, phase_peaks_from


class FilmState(StrEnum):
    """Where a film is. It goes only forwards; the last three are its ends."""

    UNKNOWN = "unknown"
    QUEUED = "queued"
    WRITING_SCRIPT = "writing_script"
    RENDERING = "rendering"
    JOINING = "joining"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (FilmState.SUCCEEDED, FilmState.FAILED, FilmState.CANCELLED)


class SceneState(StrEnum):
    """Where a scene is."""

    UNKNOWN = "unknown"
    QUEUED = "queued"
    RENDERING = "rendering"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Motion(StrEnum):
    """How a scene moves."""

    UNKNOWN = "unknown"
    UNSPECIFIED = "unspecified"
    STILL = "still"
    LEFT = "left"
    RIGHT = "right"
    UP = "up"
    DOWN = "down"
    TOWARD = "toward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished MP4."""

    size_bytes: int
    sha256: str
    width_px: int
    height_px: int
    frame_count: int
    fps: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class FilmError:
    """Why a film or a scene failed. `code` is the canonical gRPC code as a number."""

    code: int
    reason: str
    message: str
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished PNG."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StageFigure:
    """What one stage of a scene took: keyframe, encode, denoise, decode, mux."""

    stage: str
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene of a film; `index` counts from 0. `variant` is the cheaper form it is rendered in, if it is in one.

    `last_frame` is there in a continuous film alone.
    """

    index: int
    state: SceneState
    narration: str
    picture: str
    motion: Motion
    requested_duration_s: float
    seed: int
    attempt_count: int
    clip: Artifact | None
    stages: tuple[StageFigure, ...]
    phase_peaks: tuple[PhasePeak, ...]
    error: FilmError | None
    levers: Levers | None
    rungs: tuple[str, ...]
    variant: Variant | None
    trades: tuple[str, ...] = ()
    last_frame: Picture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A film, from idea to MP4. Durations are None until what they tell of has ended."""

    film_id: str
    request_id: str
    idea: str
    settings: FilmSettings
    state: FilmState
    waiting_reason: str
    progress_ratio: float
    title: str
    scenes: tuple[Scene, ...]
    video: Artifact | None
    error: FilmError | None
    create_time: datetime
    update_time: datetime
    end_time: datetime | None
    script_duration_s: float | None
    script_phase_peaks: tuple[PhasePeak, ...]
    render_duration_s: float | None
    join_duration_s: float | None


@dataclass(frozen=True, slots=True)
class FilmPage:
    """One page of a list of films; `next_page_token` is empty on the last."""

    films: tuple[Film, ...]
    next_page_token: str


def video_of(film: Film) -> Artifact:
    """The film's MP4.

    Raises:
        FailedPrecondition: it is not there, and may never be.
    """
    if film.video is None:
        raise FailedPrecondition(
            f"film {film.film_id} is {film.state.replace('_', ' ')}: it has no video"
            + ("" if film.state.ended else " yet"),
            reason="VIDEO_NOT_READY",
        )
    return film.video


def artifact_from(message: gateway_pb2.Artifact) -> Artifact:
    """The artifact of a message."""
    return Artifact(
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        width_px=message.width_px,
        height_px=message.height_px,
        frame_count=message.frame_count,
        fps=message.fps,
        duration_s=seconds_of(message.duration),
    )


def picture_from(message: gateway_pb2.Picture) -> Picture:
    """The picture of a message."""
    return Picture(message.size_bytes, message.sha256)


def film_error_from(message: gateway_pb2.FilmError) -> FilmError:
    """The error of a message."""
    return FilmError(message.code, message.reason, message.message, dict(message.metadata))


def film_state_from(value: int) -> FilmState:
    """The state of a message's number."""
    return member_of(FilmState, gateway_pb2.Film.State, value, "STATE_")


def scene_from(message: gateway_pb2.Scene) -> Scene:
    """The scene of a message."""
    return Scene(
        index=message.index,
        state=member_of(SceneState, gateway_pb2.Scene.State, message.state, "STATE_"),
        narration=message.narration,
        picture=message.picture,
        motion=member_of(Motion, gateway_pb2.Motion, message.motion, "MOTION_"),
        requested_duration_s=seconds_of(message.requested_duration),
        seed=message.seed,
        attempt_count=message.attempt_count,
        clip=artifact_from(message.clip) if message.HasField("clip") else None,
        stages=tuple(StageFigure(item.stage, seconds_of(item.duration)) for item in message.stages),
        phase_peaks=phase_peaks_from(message.phase_peaks),
        error=film_error_from(message.error) if message.HasField("error") else None,
        levers=levers_from(message.levers) if message.HasField("levers") else None,
        rungs=tuple(message.rungs),
        variant=variant_from(message.variant) if message.HasField("variant") else None,
        trades=tuple(message.trades),
        last_frame=picture_from(message.last_frame) if message.HasField("last_frame") else None,
    )


def film_from(message: gateway_pb2.Film) -> Film:
    """The film of a message."""
    return Film(
        film_id=message.film_id,
        request_id=message.request_id,
        idea=message.idea,
        settings=settings_from(message.settings),
        state=film_state_from(message.state),
        waiting_reason=message.waiting_reason,
        progress_ratio=message.progress_ratio,
        title=message.title,
        scenes=tuple(scene_from(scene) for scene in message.scenes),
        video=artifact_from(message.video) if message.HasField("video") else None,
        error=film_error_from(message.error) if message.HasField("error") else None,
        create_time=time_of(message.create_time),
        update_time=time_of(message.update_time),
        end_time=time_of(message.end_time) if message.HasField("end_time") else None,
        script_duration_s=seconds_of(message.script_duration) if message.HasField("script_duration") else None,
        script_phase_peaks=phase_peaks_from(message.script_phase_peaks),
        render_duration_s=seconds_of(message.render_duration) if message.HasField("render_duration") else None,
        join_duration_s=seconds_of(message.join_duration) if message.HasField("join_duration") else None,
    )
