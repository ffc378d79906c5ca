"""Chooses a clip's levers: the fastest way that fits, the least memory, or what the client fixed; and what else fits.

Knows sizes and prices from `Estimate`, and the room there is; no device.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from halfreel_runtime.plan import Plan, Price, Profile, Room
from halfreel_video.clip import segment_frame_counts
from halfreel_video.estimate import Estimate, Shape
from halfreel_video.levers import SAVER_CHUNK_COUNT, SDPA, SLICED, Levers

DEFAULT_DECODE_CHUNK = 8
_DECODE_CHUNKS = (8, 4, 2, 1)
_FEED_FORWARD_CHUNKS = (1, 2, 4, SAVER_CHUNK_COUNT)
_MIN_SEGMENT_FRAMES = 8  # fewer frames at once hardly move
_SCALES = (1.0, 0.875, 0.75, 0.625, 0.5)
_GRID_PX = 64  # of smaller sizes: what the UNet's four levels divide evenly
_MIN_SIDE_PX = 64
_MAX_VARIANT_COUNT = 3
# More time than this for the last bytes is no bargain: what saver may take, against balanced.
_SAVER_TIME_RATIO = 1.25
# Measured times of two ways lie as near as this where neither is faster.
_AS_FAST_RATIO = 1.03


@dataclass(frozen=True)
class Wish:
    """What a clip is to be, as far as its memory goes.

    Attributes:
        width_px, height_px, frame_count, step_count: of the clip.
        guided: whether both halves of guidance are computed.
        drawn: whether the keyframe model draws the first picture.
        decode_chunk_frame_count: as the client fixed it; None leaves it to the plan.
        levers: as the client fixed them; None leaves them to the plan.
        profile: how memory is weighed against time.
        segment_frame_count: the most frames at once.
        keeps_deep: whether what the deep blocks gave is kept for another step.
        fused: whether fused blocks are ready, so that a plan may choose them. Profile saver does not: what takes least
            is not theirs.
    """

    width_px: int
    height_px: int
    frame_count: int
    step_count: int
    guided: bool
    drawn: bool
    decode_chunk_frame_count: int | None
    levers: Levers | None
    profile: Profile
    segment_frame_count: int
    keeps_deep: bool = False
    fused: bool = False

    @property
    def shape(self) -> Shape:
        """What decides its memory: the largest segment counts."""
        segments = segment_frame_counts(self.frame_count, self.segment_frame_count)
        return Shape(
            self.width_px,
            self.height_px,
            max(segments),
            len(segments),
            self.step_count,
            self.guided,
            self.drawn,
            self.keeps_deep,
        )


@dataclass(frozen=True)
class Choice:
    """A wish, perhaps a cheaper one, with the levers and the plan it would be rendered by."""

    wish: Wish
    levers: Levers
    plan: Plan


class Planner:
    """Plans the clips of one server.

    Args:
        estimate: of its models on its card.
    """

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self._phases = functools.lru_cache(maxsize=65536)(estimate.phases)

    def choose(self, wish: Wish, room: Room, context_bytes: int) -> tuple[Choice, list[Choice]]:
        """Chooses the levers of a clip.

        Args:
            wish: the clip.
            room: what the server may take, its context included.
            context_bytes: what the driver keeps for the process beside the allocator.

        Returns:
            The choice, whose plan says whether it fits, and cheaper forms that fit where it doesn't, the nearest first.
        """
        levers = self._levers(wish, room, context_bytes)
        plan = self._plan(wish, levers, room, context_bytes)
        if plan.fits:
            return Choice(wish, levers, self._priced(wish, levers, plan)), []
        variants = list(itertools.islice(self._variants(wish, room, context_bytes), _MAX_VARIANT_COUNT))
        plan = replace(plan, cheaper_fits=bool(variants))
        return Choice(wish, levers, self._priced(wish, levers, plan)), variants

    def _levers(self, wish: Wish, room: Room, context_bytes: int) -> Levers:
        if wish.levers is not None:  # blocks that are not ready run as they are
            return replace(wish.levers, compiled=wish.levers.compiled and wish.fused)
        balanced = Levers(decode_chunk_frame_count=wish.decode_chunk_frame_count or DEFAULT_DECODE_CHUNK)
        if wish.profile in (Profile.BALANCED, Profile.QUALITY):
            return replace(balanced, compiled=wish.fused)
        ways = list(self._ways(wish))

        def least(way: Levers) -> tuple[int, ...]:
            return self._plan(wish, way, room, context_bytes).reserved_bytes, *_effort(way)

        if wish.profile is Profile.SAVER:
            most_s = _SAVER_TIME_RATIO * self._seconds(wish.shape, balanced)
            return min([way for way in ways if self._seconds(wish.shape, way) <= most_s] or ways, key=least)
        fitting = [way for way in ways if self._plan(wish, way, room, context_bytes).fits]
        if not fitting:
            return min(ways, key=least)
        # What is as fast, as far as times were measured, is decided by what gives up the least.
        most_s = _AS_FAST_RATIO * min(self._seconds(wish.shape, way) for way in fitting)
        return min((way for way in fitting if self._seconds(wish.shape, way) <= most_s), key=_effort)

    def _ways(self, wish: Wish) -> Iterator[Levers]:
        """Every set of levers that a plan may choose."""
        fixed = wish.decode_chunk_frame_count
        may_fuse = wish.fused and wish.profile is not Profile.SAVER
        for chunk, split, parts, sliced, moved, compiled in itertools.product(
            (fixed,) if fixed else _DECODE_CHUNKS,
            (False, True) if wish.guided else (False,),
            _FEED_FORWARD_CHUNKS,
            (False, True),
            ((False, False), (True, False), (True, True)),
            (False, True) if may_fuse else (False,),
        ):
            # Slices are worth their time only where feed-forward layers don't decide the peak any more.
            if not sliced or parts == SAVER_CHUNK_COUNT:
                offload, stream = moved
                way = Levers(chunk, SLICED if sliced else SDPA, split, parts, offload, stream, compiled)
                if way.fuses == compiled and not (compiled and stream):  # together they were not measured
                    yield way

    def _variants(self, wish: Wish, room: Room, context_bytes: int) -> Iterator[Choice]:
        """Cheaper forms that fit: fewer frames at once, then smaller, then both."""
        most = max(segment_frame_counts(wish.frame_count, wish.segment_frame_count))
        halves = [frames for frames in (most, -(-most // 2), -(-most // 3)) if frames >= min(most, _MIN_SEGMENT_FRAMES)]
        # With levers of the plan's own choice the clip itself may fit, unless that is what was tried.
        tried = wish.levers is None and wish.profile in (Profile.AUTO, Profile.SAVER)
        seen = {(wish.width_px, wish.height_px, most)} if tried else set()
        for scale in _SCALES:
            for frames in halves:
                width, height = _scaled(wish.width_px, scale), _scaled(wish.height_px, scale)
                if (width, height, frames) in seen:
                    continue
                seen.add((width, height, frames))
                smaller = replace(
                    wish,
                    width_px=width,
                    height_px=height,
                    segment_frame_count=min(wish.segment_frame_count, max(2, frames)),
                    # Levers that did not fit may be what is wrong; a profile is kept where it can be.
                    levers=None,
                    profile=Profile.AUTO if wish.profile is not Profile.SAVER else Profile.SAVER,
                )
                levers = self._levers(smaller, room, context_bytes)
                plan = self._plan(smaller, levers, room, context_bytes)
                if plan.fits:
                    yield Choice(smaller, levers, self._priced(smaller, levers, plan))
                    break

    def _seconds(self, shape: Shape, levers: Levers) -> float:
        return sum(phase.seconds or 0.0 for phase in self._phases(shape, levers))

    def _plan(self, wish: Wish, levers: Levers, room: Room, context_bytes: int) -> Plan:
        return Plan(
            profile=wish.profile,
            phases=self._phases(wish.shape, levers),
            context_bytes=context_bytes,
            room=room,
            coefficients=self._estimate.coefficients.source,
        )

    def _priced(self, wish: Wish, levers: Levers, plan: Plan) -> Plan:
        """The plan with the price of each lever: what it saves where it is off, or would cost where it is on."""
        shape, seconds = wish.shape, self._seconds(wish.shape, levers)
        prices = []
        for name, value in _single_levers(levers, shape.guided):
            chosen = getattr(levers, name) == value
            # A lever that is on is priced against the same without it.
            change: dict[str, Any] = {name: getattr(Levers(), name) if chosen else value}
            other = replace(levers, **change)
            changed = self._plan(wish, other, plan.room, plan.context_bytes)
            saved, added = plan.reserved_bytes - changed.reserved_bytes, self._seconds(shape, other) - seconds
            sign = -1 if chosen else 1
            prices.append(Price(name, str(value).lower(), sign * saved, sign * added, chosen))
        return replace(plan, prices=tuple(prices))


def _single_levers(levers: Levers, guided: bool) -> Sequence[tuple[str, object]]:
    chosen_chunk = min(levers.decode_chunk_frame_count, DEFAULT_DECODE_CHUNK)
    levels: list[tuple[str, object]] = [
        ("decode_chunk_frame_count", chosen_chunk if chosen_chunk < DEFAULT_DECODE_CHUNK else 1),
        ("feed_forward_chunk_count", max(levers.feed_forward_chunk_count, 1)),
        ("attention_backend", SLICED),
        ("offload_idle_parts", True),
        ("stream_weights", True),
    ]
    if levers.feed_forward_chunk_count == 1:
        levels[1] = ("feed_forward_chunk_count", SAVER_CHUNK_COUNT)
    return [("split_guidance", True), *levels] if guided else levels


def _effort(levers: Levers) -> tuple[int, ...]:
    """How much a set of levers changes, so that of two that are as good the plainer one is taken."""
    return (
        levers.stream_weights,
        levers.offload_idle_parts,
        levers.attention_backend != SDPA,
        levers.feed_forward_chunk_count,
        levers.split_guidance,
        -levers.decode_chunk_frame_count,
    )


def _scaled(side_px: int, scale: float) -> int:
    if scale == 1:
        return side_px
    return max(_MIN_SIDE_PX, int(side_px * scale) // _GRID_PX * _GRID_PX)
