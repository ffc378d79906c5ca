"""How the work on a clip is laid out, and the cheaper forms of it: parts of halfreel.video.v1, as values."""

from __future__ import annotations

from dataclasses import dataclass, fields

from halfreel.video.v1 import video_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Levers:
    """How the work on a clip is laid out; part of what decides its bytes."""

    decode_chunk_frame_count: int
    attention_backend: str
    split_guidance: bool
    feed_forward_chunk_count: int
    offload_idle_parts: bool
    stream_weights: bool
    compiled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A cheaper form of a clip: smaller, of shorter segments, or laid out otherwise."""

    width_px: int
    height_px: int
    segment_frame_count: int
    levers: Levers


def levers_from(message: video_pb2.GenerateResponse.Levers) -> Levers:
    """The levers of a message."""
    return Levers(**{field.name: getattr(message, field.name) for field in fields(Levers)})


def levers_message(levers: Levers) -> video_pb2.GenerateResponse.Levers:
    """The message of levers."""
    return video_pb2.GenerateResponse.Levers(**{field.name: getattr(levers, field.name) for field in fields(levers)})


def variant_from(message: video_pb2.Variant) -> Variant:
    """The variant of a message, its plan left out."""
    return Variant(
        width_px=message.width_px,
        height_px=message.height_px,
        segment_frame_count=message.segment_frame_count,
        levers=levers_from(message.levers),
    )
