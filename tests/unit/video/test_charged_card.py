"""Real clips by a small model on a simulated card that is charged as for SVD-XT: what is moved, given up and left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import find_device
from halfreel_runtime.errors import OutOfMemory
from halfreel_runtime.host_arena import PinError
from halfreel_runtime.testing.allocator import SimulatedAllocator
from halfreel_runtime.testing.card import SimulatedCard
from halfreel_video.events import ClipDone, StepDone
from halfreel_video.layout import IMAGE_ENCODER, KEYFRAME, UNET, VAE
from halfreel_video.levers import Levers
from halfreel_video.model import load_model
from halfreel_video.settings import VideoSettings
from halfreel_video.testing.charged_model import ChargedVideo
from halfreel_video.weights import FlatWeights

GIB = 2**30
# Decoding a frame of it takes as much as denoising three.
LARGE = {"width_px": 2048, "height_px": 1152, "frame_count": 5, "segment_frame_count": 3, "guidance_scale": 2.0}
TAKEN_RATIOS = {"encode": 0.3, "decode": 1.25}  # of what the plan says
SEGMENT_COUNT, STEP_COUNT = 2, 2
CHUNKS = ("decode_chunk_4", "decode_chunk_2", "decode_chunk_1")

MakeVideo = Callable[[float], ChargedVideo]


@pytest.fixture
def video_on(folders: tuple[Path, Path]) -> MakeVideo:
    def make(capacity_gib: float) -> ChargedVideo:
        settings = VideoSettings(model=str(folders[0]), keyframe_model=str(folders[1]), device="cpu")
        small = load_model(settings, find_device("cpu"))
        return ChargedVideo.of(small, SimulatedAllocator(SimulatedCard(int(capacity_gib * GIB))))

    return make


def run(video: ChargedVideo, clip: Any) -> tuple[ClipDone, int]:
    """What came of it, and how many steps were done."""
    events = list(video.steps_of(clip)(CancelToken()))
    assert isinstance(events[-1], ClipDone)
    assert video.leaked_bytes == 0
    return events[-1], sum(isinstance(each, StepDone) for each in events)


def test_parts_and_work_take_of_the_card_what_the_plan_says(video_on: MakeVideo, make_clip: Any) -> None:
    video = video_on(80)
    for offload, stream in ((False, False), (True, False), (True, True)):
        levers = Levers(4, offload_idle_parts=offload, stream_weights=stream)
        video.layout.park_all()
        phases = video.layout._estimate.phases(video.layout.shape, levers)
        done, _ = run(video, make_clip(width_px=1024, height_px=576, guidance_scale=2.0, **vars(levers)))
        peaks = {each.phase: each.peak.allocated_bytes for each in done.phase_peaks}
        assert peaks.keys() == {"keyframe", "encode", "denoise", "decode", "mux"}
        for phase in phases:
            if phase.name != "denoise":  # 5 frames of the 25 that the shape has
                assert peaks[phase.name] == pytest.approx(phase.reserved_bytes, rel=0.01), phase.name
        assert video.allocator.live.allocated == video.layout.held_bytes()
        assert (video.layout.held_bytes() < 2 * GIB) is offload


def faults(video: ChargedVideo, monkeypatch: pytest.MonkeyPatch, part: str, piece: int) -> None:
    def no_room(device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(video.layout._weights[part][piece], "load", no_room)


@pytest.mark.parametrize(("part", "piece"), [(KEYFRAME, 1), (KEYFRAME, -1), (UNET, 1), (UNET, -1), (VAE, 0)])
def test_a_part_that_comes_only_in_part_is_not_there_at_all(
    video_on: MakeVideo, monkeypatch: pytest.MonkeyPatch, part: str, piece: int
) -> None:
    video = video_on(80)
    video.layout.take(Levers(offload_idle_parts=True))
    with monkeypatch.context() as faulty:
        faults(video, faulty, part, piece)
        with pytest.raises(torch.OutOfMemoryError):
            video.layout.use(part)
        assert not video.layout.is_here(part)
        assert video.allocator.live.allocated == video.layout.held_bytes() == video.layout.device_bytes() == 0
    video.layout.use(part)
    assert video.layout.is_here(part)
    assert video.allocator.live.allocated == video.layout.held_bytes() > 0


def test_a_ring_without_room_leaves_nothing_of_the_unet(video_on: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    video = video_on(80)
    video.layout.arrange(Levers())

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    with monkeypatch.context() as faulty:
        faulty.setattr("halfreel_video.layout.WeightStream", no_room)
        video.layout.take(Levers(offload_idle_parts=True, stream_weights=True))
        with pytest.raises(torch.OutOfMemoryError):
            video.layout.use(UNET)
    assert video.allocator.live.allocated == video.layout.held_bytes() == 0
    video.layout.use(UNET)
    assert 0 < video.layout.held_bytes() < GIB


def test_weights_that_the_driver_does_not_lock_are_kept_all_the_same(
    video_on: MakeVideo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layout = video_on(80).layout
    weights = FlatWeights([torch.nn.Linear(8, 8)])

    def refused(size_bytes: int, *, pinned: bool) -> None:
        raise PinError("no more")

    monkeypatch.setattr("halfreel_video.weights.HostArena", refused)
    monkeypatch.setattr(layout, "device", torch.device("cuda"))
    layout._keep(weights)
    assert weights.kept
    assert [each.message for each in caplog.records] == ["not_pinned"]


def test_arithmetic_that_finds_no_room_leaves_the_part_as_it_was(
    video_on: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = video_on(80).layout
    layout.arrange(Levers())
    move, moved = torch.nn.Module.to, []

    def tight(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        moved.append(module)
        if dtype == torch.float32 or module is layout._modules[KEYFRAME][1]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return move(module, device, dtype)

    with monkeypatch.context() as faulty:
        faulty.setattr(torch.nn.Module, "to", tight)
        assert layout.upcast(VAE) == torch.bfloat16
        with pytest.raises(torch.OutOfMemoryError):
            layout.upcast(KEYFRAME)
    assert moved[-2:] == layout._modules[KEYFRAME][:2]
    assert layout.changed == {VAE}
    assert not layout.is_here(KEYFRAME)
    assert {each.dtype for module in layout._modules[KEYFRAME] for each in module.parameters()} == {torch.float32}
    layout.restore()
    assert not layout.changed


def test_what_does_not_fit_beside_the_rest_goes_by_a_rung_before_anything_is_drawn(
    video_on: MakeVideo, make_clip: Any
) -> None:
    video = video_on(5)  # all parts are 6.6
    for _ in range(2):  # the second one begins where the first left the card
        done, step_count = run(video, make_clip(width_px=512, height_px=320))
        assert done.rungs == ("offload_idle_parts",)
        assert done.levers == Levers()
        assert step_count == STEP_COUNT
    roomy, _ = run(video_on(80), make_clip(width_px=512, height_px=320))
    assert done.mp4 == roomy.mp4


def test_a_second_segment_gives_up_what_its_own_decoding_needs(video_on: MakeVideo, make_clip: Any) -> None:
    # Denoising takes 10.6; decoding a frame 13.5 beside all parts, 11.2 without the keyframe model, 7.1 by itself.
    video = video_on(11)
    video.layout.taken_ratio = lambda phase: TAKEN_RATIOS.get(phase, 1.0)
    done, step_count = run(video, make_clip(**LARGE))
    assert done.rungs == (*CHUNKS, "unet_off", "unet_off")
    assert step_count == SEGMENT_COUNT * STEP_COUNT
    assert not video.layout.changed


def test_a_second_segment_goes_to_the_cpu_by_itself_and_the_vae_comes_back(video_on: MakeVideo, make_clip: Any) -> None:
    video = video_on(11)
    ratios = {"encode": 0.3, "decode": 2.0}
    video.layout.taken_ratio = lambda phase: ratios.get(phase, 1.0)
    done, step_count = run(video, make_clip(**LARGE))
    assert done.rungs == (*CHUNKS, "unet_off", "decode_on_cpu", "unet_off", "decode_on_cpu")
    assert step_count == SEGMENT_COUNT * STEP_COUNT
    ratios["decode"] = 0.1
    again, _ = run(video, make_clip(**LARGE))
    assert again.rungs == ()
    assert video.layout.is_here(VAE)


def test_a_rung_that_frees_nothing_is_not_taken(video_on: MakeVideo, make_clip: Any) -> None:
    video = video_on(7)
    video.layout.taken_ratio = lambda phase: TAKEN_RATIOS.get(phase, 1.0)
    done, _ = run(video, make_clip(**LARGE, decode_chunk_frame_count=1, offload_idle_parts=True))
    assert done.rungs == ("decode_on_cpu", "decode_on_cpu")
    assert not any(video.layout.is_here(name) for name in (KEYFRAME, IMAGE_ENCODER, UNET))


def test_a_model_that_has_no_room_for_all_parts_any_more_wakes_and_renders(video_on: MakeVideo, make_clip: Any) -> None:
    video = video_on(12)
    run(video, make_clip())
    sleeping = video.sleeping
    sleeping.sleep()
    assert video.allocator.live.allocated == 0
    video.allocator.card.others_bytes = 7 * GIB  # all parts are 6.6, and 5 are left
    sleeping.wake()
    assert video.allocator.live.allocated == 0
    done, _ = run(video, make_clip(offload_idle_parts=True, width_px=512, height_px=320))
    assert done.rungs == ()


def test_where_no_rung_helps_the_clip_fails_alone_and_the_card_is_left_clean(
    video_on: MakeVideo, make_clip: Any
) -> None:
    video = video_on(12)
    video.allocator.card.others_bytes = 11 * GIB
    with pytest.raises(OutOfMemory) as caught:
        run(video, make_clip())
    assert int(caught.value.metadata["free_bytes"]) <= GIB
    assert video.allocator.live.allocated == video.layout.held_bytes()
    video.allocator.card.others_bytes = 0
    done, _ = run(video, make_clip())
    assert done.rungs == ()
