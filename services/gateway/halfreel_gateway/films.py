"""What a film is as it goes forward: its ends, its progress, its times.

It does not know where films are kept, nor who works on them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway.script import MAX_SCENE_COUNT

FIRST_END = pb.Film.STATE_SUCCEEDED
SCENE_AT_WORK = frozenset({pb.Scene.STATE_QUEUED, pb.Scene.STATE_RENDERING})

# Parts of the whole work, for progress_ratio; joining is the rest. Rendering is nearly all of it with every model.
SCRIPT_SHARE = 0.10
SCENES_SHARE = 0.85


def has_ended(state: pb.Film.State.ValueType) -> bool:
    """Whether nothing more will happen to a film in this state."""
    return state >= FIRST_END


def ends_film(event: pb.WatchFilmResponse) -> bool:
    """Whether this is a film's last event."""
    return event.HasField("state_changed") and has_ended(event.state_changed.state)


def progress_ratio(state: pb.Film.State.ValueType, scene_ratios: Iterable[float]) -> float:
    """Of all the work, how much is done.

    Args:
        state: where the film is.
        scene_ratios: of each scene, how much of it is rendered, from 0 to 1; none before there is a script.
    """
    if state == pb.Film.STATE_SUCCEEDED:
        return 1.0
    ratios = list(scene_ratios)
    if not ratios:
        return 0.0
    if state == pb.Film.STATE_WRITING_SCRIPT:
        # Nobody knows yet how many scenes there will be: counted on the most there may be, so that progress only grows.
        return SCENES_SHARE * sum(ratios) / MAX_SCENE_COUNT
    return SCRIPT_SHARE + SCENES_SHARE * sum(ratios) / len(ratios)


def now_us() -> int:
    """Microseconds since 1970, by the wall clock."""
    return time.time_ns() // 1000


def timestamp(time_us: int) -> Timestamp:
    """A time as the contract tells it."""
    stamp = Timestamp()
    stamp.FromMicroseconds(time_us)
    return stamp


def duration(seconds: float) -> Duration:
    """A duration as the contract tells it, to the microsecond."""
    told = Duration()
    told.FromMicroseconds(round(seconds * 1e6))
    return told
