"""What happens to a film while it is watched: the events of WatchFilm, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from halfreel.gateway.v1 import gateway_pb2
from halfreel_client.clock import seconds_of, time_of
from halfreel_client.errors import HalfreelError
from halfreel_client.film import (
    Artifact,
    Film,
    FilmError,
    FilmState,
    Scene,
    artifact_from,
    film_error_from,
    film_from,
    film_state_from,
    scene_from,
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The film as it is: the first event, and the first after every rejoining."""

    film: Film


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The film's state changed. Stored."""

    state: FilmState
    title: str
    progress_ratio: float


@dataclass(frozen=True, slots=True)
class SceneChanged:
    """A scene was written, or its state changed. Stored."""

    scene: Scene


@dataclass(frozen=True, slots=True)
class VideoReady:
    """The film's MP4 is there. Stored."""

    video: Artifact


@dataclass(frozen=True, slots=True)
class Failed:
    """The film failed. Stored."""

    error: FilmError


@dataclass(frozen=True, slots=True)
class ScriptDelta:
    """More of the script's JSON; when `attempt` grows, the text begins anew."""

    text: str
    attempt: int


@dataclass(frozen=True, slots=True)
class SceneStep:
    """A denoising step of a scene ended; `step_index` counts from 1."""

    scene_index: int
    step_index: int
    step_count: int
    duration_s: float
    remaining_s: float


@dataclass(frozen=True, slots=True)
class SceneStage:
    """A stage of a scene began: keyframe, encode, denoise, decode or mux."""

    scene_index: int
    stage: str


@dataclass(frozen=True, slots=True)
class ScenePreview:
    """A rough picture of a scene at work, as JPEG."""

    scene_index: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Waiting:
    """The film waits, and why; it goes on when the reason is empty."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rejoining:
    """The gateway went away; made by the client itself, which joins again after `delay_s`."""

    error: HalfreelError
    delay_s: float


Happening = (
    Snapshot
    | StateChanged
    | SceneChanged
    | VideoReady
    | Failed
    | ScriptDelta
    | SceneStep
    | SceneStage
    | ScenePreview
    | Waiting
    | Rejoining
)


@dataclass(frozen=True, slots=True)
class FilmEvent:
    """One event. `sequence_number` is above 0 for stored events, which can be asked for again."""

    sequence_number: int
    time: datetime
    what: Happening


def own_event(what: Rejoining) -> FilmEvent:
    """An event that the client made."""
    return FilmEvent(0, datetime.now(UTC), what)


_READERS: dict[str, Callable[[Any], Happening]] = {
    "film": lambda film: Snapshot(film_from(film)),
    "state_changed": lambda change: StateChanged(film_state_from(change.state), change.title, change.progress_ratio),
    "scene_changed": lambda scene: SceneChanged(scene_from(scene)),
    "video_ready": lambda video: VideoReady(artifact_from(video)),
    "failed": lambda error: Failed(film_error_from(error)),
    "script_delta": lambda delta: ScriptDelta(delta.text, delta.attempt),
    "scene_step": lambda step: SceneStep(
        step.scene_index, step.step_index, step.step_count, seconds_of(step.duration), seconds_of(step.remaining)
    ),
    "scene_stage": lambda stage: SceneStage(stage.scene_index, stage.stage),
    "scene_preview": lambda preview: ScenePreview(preview.scene_index, preview.jpeg),
    "waiting": lambda waiting: Waiting(waiting.reason),
}


def film_event_from(message: gateway_pb2.WatchFilmResponse) -> FilmEvent | None:
    """The event of a message; None for a kind of event that is newer than this client."""
    name = message.WhichOneof("event")
    if name is None:
        return None
    return FilmEvent(message.sequence_number, time_of(message.event_time), _READERS[name](getattr(message, name)))
