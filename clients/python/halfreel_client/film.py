"""A film and its parts: the resources of halfreel.gateway.v1, as values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum

from halfreel.gateway.v1 import gateway_pb2
from halfreel_client.clock import member_of, seconds_of, time_of
from halfreel_client.errors import FailedPrecondition, InvalidArgument, Violation
from halfreel_client.levers import Levers, Variant, levers_from, variant_from
from halfreel_client.memory import MemoryProfile, PhasePeak, phase_peaks_from, profile_from, profile_number


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
class FilmSettings:
    """What is wanted of a film beside its idea; None leaves the choice to the servers.

    Ranges: scene_count 1 to 8; width_px and height_px 64 to 2,048, multiples of 8; fps 1 to 60; step_count 1 to 100;
    scene_seconds 1 to 30; motion_bucket 1 to 255; guidance_scale 1 to 20; temperature 0 to 2; seed 0 to 2^63 - 1.
    With `allow_cheaper`, scenes that do not fit in memory are rendered in the first cheaper form that does. `trades`
    names what of the clips' quality is given for time, as the video model offers it. With `continuous`, each scene but
    the first starts from the last frame of the scene before.
    """

    scene_count: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    fps: int | None = None
    step_count: int | None = None
    scene_seconds: int | None = None
    motion_bucket: int | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    seed: int | None = None
    profile: MemoryProfile | None = None
    allow_cheaper: bool = False
    trades: tuple[str, ...] = ()
    continuous: bool = False


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


def create_request(idea: str, settings: FilmSettings, request_id: str) -> gateway_pb2.CreateFilmRequest:
    """The message that asks for a film.

    Raises:
        InvalidArgument: a value does not even fit its field of the message; limits are checked by the gateway.
    """
    message = gateway_pb2.CreateFilmRequest(request_id=request_id, settings=gateway_pb2.FilmSettings())
    try:
        message.idea = idea
    except ValueError:  # a lone surrogate, as a terminal in another encoding makes them
        raise _refused("idea", "must be text in UTF-8") from None
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is None:
            continue
        if isinstance(value, MemoryProfile):
            value = profile_number(value)
        try:
            if isinstance(value, tuple):
                getattr(message.settings, field.name).extend(value)
            else:
                setattr(message.settings, field.name, value)
        except (ValueError, TypeError):
            raise _refused(f"settings.{field.name}", f"{value!r} does not fit this field") from None
    return message


def _refused(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: {description}", reason="INVALID_FIELD", violations=[Violation(field, description)]
    )


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


def _settings_from(message: gateway_pb2.FilmSettings) -> FilmSettings:
    plain = {"profile", "allow_cheaper", "trades", "continuous"}  # without presence: their defaults are values
    return FilmSettings(
        **{
            field.name: getattr(message, field.name)
            for field in fields(FilmSettings)
            if field.name not in plain and message.HasField(field.name)  # type: ignore[arg-type]  # the names are the message's own
        },
        profile=profile_from(message.profile),
        allow_cheaper=message.allow_cheaper,
        trades=tuple(message.trades),
        continuous=message.continuous,
    )


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
        settings=_settings_from(message.settings),
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
