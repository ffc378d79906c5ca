"""A clip's job: its events, its bytes, and what is left after it is stopped or fails."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import Cancelled, Internal, OutOfMemory
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video.clip import segment_frame_counts
from halfreel_video.events import ClipDone, Preview, Stage, StageStarted, StepDone, merge
from halfreel_video.job import ClipJob
from halfreel_video.model import VideoModel
from halfreel_video.mp4 import Mp4Writer


@pytest.fixture(scope="module")
def memory(model: VideoModel) -> MemoryMonitor:
    return MemoryMonitor(model.device)


@pytest.fixture
def run(model: VideoModel, memory: MemoryMonitor) -> Any:
    def events(clip: Any, token: CancelToken | None = None) -> Iterator[Any]:
        return ClipJob(model, clip, memory).steps(token or CancelToken())

    return events


def frames_of(mp4: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(mp4)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_events_come_in_the_order_of_the_work(run: Any, make_clip: Any) -> None:
    events = list(run(make_clip(preview=True)))
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    assert stages == list(Stage)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(step.index, step.count) for step in steps] == [(1, 2), (2, 2)]
    assert steps[0].duration_s > 0
    assert steps[0].remaining_s == pytest.approx(steps[0].duration_s)
    assert steps[-1].remaining_s == 0
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.step_index for preview in previews] == [1, 2]
    done = events[-1]
    assert isinstance(done, ClipDone)
    assert list(done.stage_s) == list(Stage)
    assert sum(done.stage_s.values()) <= done.generate_s
    assert [peak.phase for peak in done.phase_peaks] == [stage.value for stage in Stage]
    assert all(peak.peak.allocated_bytes > 0 for peak in done.phase_peaks)
    assert len(frames_of(done.mp4)) == 5


def test_a_preview_is_a_small_jpeg(run: Any, make_clip: Any) -> None:
    preview = next(event for event in run(make_clip(preview=True)) if isinstance(event, Preview))
    assert len(preview.jpeg) <= 64 * 1024
    with Image.open(io.BytesIO(preview.jpeg)) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) == 256


def test_a_picture_needs_no_keyframe(run: Any, make_clip: Any, picture: Image.Image) -> None:
    events = list(run(make_clip(image=picture, prompt="")))
    assert [event.stage for event in events if isinstance(event, StageStarted)] == list(Stage)[1:]


def test_a_long_clip_is_chained(run: Any, make_clip: Any, picture: Image.Image) -> None:
    events = list(run(make_clip(image=picture, frame_count=12)))
    started = [event for event in events if isinstance(event, StageStarted)]
    assert [(event.stage, event.segment_index) for event in started] == [
        (stage, index) for index in range(3) for stage in list(Stage)[1:]
    ]
    assert {event.segment_count for event in started} == {3}
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [step.index for step in steps] == [1, 2, 3, 4, 5, 6]
    assert {step.count for step in steps} == {6}
    frames = frames_of(events[-1].mp4)
    assert len(frames) == 12
    # The second part goes on from the last frame of the first, and does not show it twice.
    assert all(np.abs(a.astype(int) - b).mean() > 0.05 for a, b in itertools.pairwise(frames))


def test_a_chained_clip_goes_on_from_the_last_frame_of_each_part(
    run: Any, make_clip: Any, picture: Image.Image, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(image=picture, frame_count=8, guidance_scale=2.0)
    added: list[np.ndarray] = []
    monkeypatch.setattr(Mp4Writer, "add", lambda _writer, frame: added.append(frame))
    monkeypatch.setattr(Mp4Writer, "finish", lambda _writer: b"")
    list(run(clip))
    generator, expected, first = torch.Generator("cpu").manual_seed(clip.seed), [], picture
    for frame_count in (5, 4):
        frames = model.svd(
            first,
            height=64,
            width=64,
            num_frames=frame_count,
            num_inference_steps=2,
            fps=7,
            motion_bucket_id=127,
            max_guidance_scale=2.0,
            generator=generator,
        ).frames[0]
        first = frames[-1]
        expected += frames[1 if expected else 0 :]
    assert len(added) == len(expected) == 8
    assert all(np.array_equal(a, b) for a, b in zip(added, expected, strict=True))


@pytest.mark.parametrize(
    ("frame_count", "parts"),
    [(2, (2,)), (25, (25,)), (26, (14, 13)), (49, (25, 25)), (50, (18, 17, 17)), (100, (21, 21, 21, 21, 20))],
)
def test_parts_are_even_and_make_the_whole(frame_count: int, parts: tuple[int, ...]) -> None:
    assert segment_frame_counts(frame_count, 25) == parts
    assert sum(parts) - (len(parts) - 1) == frame_count


def test_every_length_is_cut_into_parts_that_fit() -> None:
    for length in (2, 5, 25):
        for frame_count in range(2, 200):
            parts = segment_frame_counts(frame_count, length)
            assert sum(parts) - (len(parts) - 1) == frame_count
            assert min(parts) >= 2
            assert max(parts) <= length


def test_same_request_same_bytes_also_after_a_stopped_and_a_failed_one(
    run: Any, make_clip: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(frame_count=8)
    first = list(run(clip))[-1].mp4
    token = CancelToken()
    with pytest.raises(Cancelled):
        for event in run(make_clip(step_count=9, seed=1), token):
            if isinstance(event, StepDone):
                token.cancel()
    with monkeypatch.context() as broken:
        broken.setattr(model.svd.vae, "decode", _fail)
        with pytest.raises(ZeroDivisionError):
            list(run(make_clip(seed=2)))
    assert list(run(clip))[-1].mp4 == first
    assert list(run(make_clip(frame_count=8, seed=6)))[-1].mp4 != first


def test_cancelled_between_two_steps(run: Any, make_clip: Any) -> None:
    token, seen = CancelToken(), []
    with pytest.raises(Cancelled):
        for event in run(make_clip(step_count=5), token):
            seen.append(event)
            if isinstance(event, StepDone) and event.index == 2:
                token.cancel()
    assert sum(isinstance(event, StepDone) for event in seen) == 2


@pytest.mark.parametrize(("owner", "part"), [("svd", "unet"), ("svd", "image_encoder"), ("keyframe", "unet")])
def test_cancelled_within_a_pass_of_a_model(
    run: Any, make_clip: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch, owner: str, part: str
) -> None:
    token, finished = CancelToken(), []
    module = getattr(getattr(model, owner), part)
    original = module.forward

    def cancel_and_go_on(*arguments: Any, **named: Any) -> Any:
        token.cancel()
        result = original(*arguments, **named)
        finished.append(1)
        return result

    monkeypatch.setattr(module, "forward", cancel_and_go_on)
    with pytest.raises(Cancelled):
        list(run(make_clip(), token))
    assert not finished


def test_a_long_pass_is_no_silence_to_the_watchdog(
    run: Any, make_clip: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, beats = CancelToken(), []
    original = model.svd.vae.decode

    def count_beats(*arguments: Any, **named: Any) -> Any:
        before = token.last_beat
        result = original(*arguments, **named)
        beats.append(token.last_beat > before)
        return result

    monkeypatch.setattr(model.svd.vae, "decode", count_beats)
    list(run(make_clip(), token))
    assert beats == [True]


def test_cancelled_between_two_chunks_of_frames(run: Any, make_clip: Any, model: VideoModel) -> None:
    token, decoded = CancelToken(), []
    original = model.svd.vae.decode

    def decode_and_cancel(*args: Any, **kwargs: Any) -> Any:
        decoded.append(1)
        token.cancel()
        return original(*args, **kwargs)

    model.svd.vae.decode = decode_and_cancel
    try:
        with pytest.raises(Cancelled):
            list(run(make_clip(decode_chunk_frame_count=1), token))
    finally:
        del model.svd.vae.decode
    assert decoded == [1]


def test_cancelled_during_the_keyframe(run: Any, make_clip: Any) -> None:
    token, seen = CancelToken(), []
    with pytest.raises(Cancelled):
        for event in run(make_clip(), token):
            seen.append(event)
            token.cancel()
    assert seen == [StageStarted(Stage.KEYFRAME, 0, 1)]


def test_out_of_memory_tells_bytes_and_leaves_the_model_as_it_was(
    run: Any, make_clip: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip()
    before = list(run(clip))[-1].mp4

    def starve(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")

    with monkeypatch.context() as starved:
        starved.setattr(model.svd.unet, "forward", starve)
        with pytest.raises(OutOfMemory) as caught:
            list(run(clip))
    assert caught.value.metadata["needed_bytes"] == str(int(2.5 * 2**30))
    assert int(caught.value.metadata["free_bytes"]) > 0
    assert caught.value.__context__ is None
    assert list(run(clip))[-1].mp4 == before


def test_a_real_allocation_that_fails_is_out_of_memory(
    run: Any, make_clip: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.svd.vae, "decode", lambda *_, **__: torch.empty(2**60))
    with pytest.raises(OutOfMemory) as caught:
        list(run(make_clip()))
    assert int(caught.value.metadata["needed_bytes"]) == 2**62


def test_a_keyframe_that_is_no_number_is_an_error(
    run: Any, make_clip: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(run(make_clip()))  # so that all parts are where they belong, and stay there
    bias = model.keyframe.unet.conv_out.bias
    monkeypatch.setattr(bias, "data", torch.full_like(bias, float("nan")))
    with pytest.raises(Internal) as caught:
        list(run(make_clip()))
    assert caught.value.reason == "NAN_DETECTED"


def test_only_the_last_of_unread_steps_is_kept() -> None:
    step, later = StepDone(1, 9, 0.1, 0.8), StepDone(2, 9, 0.1, 0.7)
    assert merge(step, later) is later
    assert merge(Preview(b"1", 1), Preview(b"2", 2)) == Preview(b"2", 2)
    assert merge(step, Preview(b"1", 1)) is None
    assert merge(StageStarted(Stage.DENOISE, 0, 1), step) is None


def _fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError
