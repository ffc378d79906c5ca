"""What a clip's job tells while it runs. Knows nothing of gRPC."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halfreel.gpu.v1 import gpu_pb2
from halfreel_video.levers import Levers


class Stage(enum.Enum):
    """A part of the work on one clip; the value is also the name of its memory phase."""

    KEYFRAME = "keyframe"
    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"
    MUX = "mux"


@dataclass(frozen=True)
class StageStarted:
    """A stage of one part of the clip began."""

    stage: Stage
    segment_index: int
    segment_count: int


@dataclass(frozen=True)
class StepDone:
    """A denoising step ended; counted from 1, over all parts of the clip."""

    index: int
    count: int
    duration_s: float
    remaining_s: float


@dataclass(frozen=True)
class Preview:
    """A rough picture after a step."""

    jpeg: bytes
    step_index: int


@dataclass(frozen=True)
class ClipDone:
    """The finished MP4, what it took, how it was laid out, and what was given up or done again on the way.

    `last_frame` is a PNG, empty where it was not asked for.
    """

    mp4: bytes
    sha256: str
    queue_s: float
    generate_s: float
    stage_s: Mapping[Stage, float]
    phase_peaks: Sequence[gpu_pb2.PhasePeak]
    levers: Levers
    rungs: Sequence[str] = ()
    nan_retry_count: int = 0
    last_frame: bytes = b""


Event = StageStarted | StepDone | Preview | ClipDone


def merge(unread: Event, new: Event) -> Event | None:
    """Joins an unread event with a new one: of steps and of previews only the last is of interest."""
    if isinstance(unread, StepDone) and isinstance(new, StepDone):
        return new
    if isinstance(unread, Preview) and isinstance(new, Preview):
        return new
    return None
