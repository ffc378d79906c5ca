"""The table of limits: every field at its ends and just beyond, and what the error says."""

from __future__ import annotations

from typing import Any

import pytest

from halfreel.video.v1 import video_pb2
from halfreel_runtime.errors import FailedPrecondition, InvalidArgument
from halfreel_video.limits import Limits
from halfreel_video.model import ClipDefaults
from halfreel_video.settings import VideoSettings

DEFAULTS = ClipDefaults(
    width_px=128, height_px=96, frame_count=16, step_count=6, fps=8, motion_bucket=127, guidance_scale=1.0
)
LIMITS = Limits.of(VideoSettings(), DEFAULTS)


def request(**fields: Any) -> video_pb2.GenerateRequest:
    return video_pb2.GenerateRequest(**({"prompt": "a red circle"} | fields))


def test_a_request_that_names_nothing_gets_the_defaults() -> None:
    LIMITS.check(request())
    clip = LIMITS.clip(request(), "id", None)
    assert (clip.width_px, clip.height_px, clip.frame_count, clip.step_count) == (128, 96, 16, 6)
    assert (clip.fps, clip.motion_bucket, clip.guidance_scale, clip.decode_chunk_frame_count) == (8, 127, 1.0, 8)
    assert 0 <= clip.seed < 2**63
    assert clip.seed != LIMITS.clip(request(), "id", None).seed


def test_what_a_request_names_wins_over_the_defaults() -> None:
    clip = LIMITS.clip(request(width_px=64, guidance_scale=2.5, seed=0, preview=True), "id", None)
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
