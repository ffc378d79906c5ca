"""The table of limits: every field at its ends and just beyond, and what the error says."""

from __future__ import annotations

from typing import Any

import pytest

from halfreel.video.v1 import video_pb2
from halfreel_runtime.errors import FailedPrecondition, InvalidArgument
from halfreel_runtime.plan import Plan, Profile, Room
from halfreel_video.clip import ClipRequest
from halfreel_video.levers import Levers
from halfreel_video.limits import Limits
from halfreel_video.model import ClipDefaults
from halfreel_video.planner import Choice
from halfreel_video.settings import VideoSettings

DEFAULTS = ClipDefaults(
    width_px=128, height_px=96, frame_count=16, step_count=6, fps=8, motion_bucket=127, guidance_scale=1.0
)
LIMITS = Limits.of(VideoSettings(), DEFAULTS)


def request(**fields: Any) -> video_pb2.GenerateRequest:
    return video_pb2.GenerateRequest(**({"prompt": "a red circle"} | fields))


def clip_of(asked: video_pb2.GenerateRequest) -> ClipRequest:
    wish = LIMITS.wish(asked, 16, Profile.AUTO)
    plan = Plan(Profile.AUTO, (), 0, Room(1))
    return LIMITS.clip(asked, Choice(wish, wish.levers or Levers(), plan), "id", None)


def test_a_request_that_names_nothing_gets_the_defaults() -> None:
    LIMITS.check(request())
    clip = clip_of(request())
    assert (clip.width_px, clip.height_px, clip.frame_count, clip.step_count) == (128, 96, 16, 6)
    assert (clip.fps, clip.motion_bucket, clip.guidance_scale, clip.levers) == (8, 127, 1.0, Levers())
    assert 0 <= clip.seed < 2**63
    assert clip.seed != clip_of(request()).seed


def test_what_a_request_names_wins_over_the_defaults() -> None:
    clip = clip_of(request(width_px=64, guidance_scale=2.5, seed=0, preview=True))
    assert (clip.width_px, clip.height_px, clip.guidance_scale, clip.seed, clip.preview) == (64, 96, 2.5, 0, True)


@pytest.mark.parametrize("limit", LIMITS.table, ids=lambda limit: limit.field)
def test_both_ends_are_taken_and_nothing_beyond(limit: Any) -> None:
    kind = float if limit.field == "guidance_scale" else int
    for value in (limit.low, limit.high):
        LIMITS.check(request(**{limit.field: kind(value)}))
    for value in (limit.low - limit.step, limit.high + limit.step, -(2**31), 2**31 - 1, 0):
        with pytest.raises(InvalidArgument) as caught:
            LIMITS.check(request(**{limit.field: kind(value)}))
        (violation,) = caught.value.violations
        assert violation.field == limit.field
        shown = f"{float(value):g}" if kind is float else str(value)
        assert f"is {shown}; it must be between {limit.low} and {limit.high}" in violation.description


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.99, 20.01])
def test_a_guidance_scale_is_a_number_in_its_range(value: float) -> None:
    with pytest.raises(InvalidArgument, match="guidance_scale is"):
        LIMITS.check(request(guidance_scale=value))


def test_sides_are_multiples_of_8() -> None:
    with pytest.raises(InvalidArgument, match="width_px is 100; it must be a multiple of 8"):
        LIMITS.check(request(width_px=100))


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        LIMITS.check(request(width_px=1_000_001, fps=0, seed=-1, prompt="x" * 2001, request_id="a b"))
    assert [violation.field for violation in caught.value.violations] == [
        "width_px",
        "fps",
        "seed",
        "request_id",
        "prompt",
    ]


def test_the_first_picture_needs_words_or_an_image() -> None:
    with pytest.raises(InvalidArgument, match="prompt is empty"):
        LIMITS.check(request(prompt=""))
    with pytest.raises(InvalidArgument, match="prompt is empty"):
        LIMITS.check(request(prompt=" \n"))
    LIMITS.check(request(prompt="", image=b"any"))


def test_the_longest_prompt_is_taken() -> None:
    LIMITS.check(request(prompt="ü" * 2000))


def test_sizes_reach_four_times_the_models_own_or_what_is_set() -> None:
    assert (LIMITS.high("width_px"), LIMITS.high("height_px")) == (512, 384)
    large = ClipDefaults(1024, 576, 25, 25, 7, 127, 3.0)
    assert Limits.of(VideoSettings(), large).high("width_px") == 2048
    assert Limits.of(VideoSettings(max_width_px=256), DEFAULTS).high("width_px") == 256


def test_a_model_with_defaults_out_of_range_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="width_px is 100") as caught:
        Limits.of(VideoSettings(), ClipDefaults(100, 96, 16, 6, 8, 127, 1.0))
    assert caught.value.reason == "MODEL_REFUSED"


def test_levers_of_a_request_are_the_clips_own() -> None:
    asked = request(
        levers=Levers(decode_chunk_frame_count=3, split_guidance=True, feed_forward_chunk_count=4).message()
    )
    LIMITS.check(asked)
    assert clip_of(asked).levers == Levers(3, "sdpa", True, 4, False, False)
    assert Levers.read(Levers().message()) == Levers()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"decode_chunk_frame_count": 201}, "levers.decode_chunk_frame_count is 201; it must be between 1 and 200"),
        ({"decode_chunk_frame_count": -1}, "levers.decode_chunk_frame_count is -1"),
        ({"feed_forward_chunk_count": 65}, "levers.feed_forward_chunk_count is 65; it must be between 1 and 64"),
        ({"attention_backend": "flash"}, "levers.attention_backend is 'flash'; it must be one of"),
    ],
)
def test_a_lever_out_of_range_is_named(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match="levers") as caught:
        LIMITS.check(request(levers=video_pb2.GenerateResponse.Levers(**fields)))
    assert text in caught.value.message


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="profile is 99; it must be one of"):
        LIMITS.check(request(profile=99))


def test_a_plan_needs_neither_words_nor_picture_but_a_card_in_range() -> None:
    clip = video_pb2.GenerateRequest()
    LIMITS.check_plan(video_pb2.PlanMemoryRequest(clip=clip, card_bytes=2**30))
    LIMITS.check_plan(video_pb2.PlanMemoryRequest(clip=clip))
    for card_bytes in (2**30 - 1, 2**40 + 1, 0):
        with pytest.raises(InvalidArgument, match="card_bytes is"):
            LIMITS.check_plan(video_pb2.PlanMemoryRequest(clip=clip, card_bytes=card_bytes))
    with pytest.raises(InvalidArgument, match="width_px is 8; it must be"):
        LIMITS.check_plan(video_pb2.PlanMemoryRequest(clip=video_pb2.GenerateRequest(width_px=8)))
