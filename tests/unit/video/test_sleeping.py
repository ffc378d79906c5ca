"""Both models asleep and awake again: on a CPU by a file, on a GPU by the layout, the same clip before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import Device, find_device
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video.events import ClipDone
from halfreel_video.job import ClipJob
from halfreel_video.levers import Levers
from halfreel_video.model import VideoModel, load_model
from halfreel_video.settings import VideoSettings
from halfreel_video.sleeping import SleepingVideo


@pytest.fixture
def own(folders: tuple[Path, Path]) -> VideoModel:
    settings = VideoSettings(model=str(folders[0]), keyframe_model=str(folders[1]), device="cpu")
    return load_model(settings, find_device("cpu"))


def render(model: VideoModel, make_clip: Any) -> bytes:
    [done] = [
        event
        for event in ClipJob(model, make_clip(), MemoryMonitor(model.device)).steps(CancelToken())
        if isinstance(event, ClipDone)
    ]
    return done.mp4


def test_a_clip_is_the_same_after_a_sleep(own: VideoModel, make_clip: Any) -> None:
    before = render(own, make_clip)
    sleeping = SleepingVideo(own)
    assert sleeping.weight_bytes == pytest.approx(own.weights.weight_bytes, rel=0.01)
    for _ in range(2):
        sleeping.sleep()
        assert all(each.untyped_storage().nbytes() == 0 for each in own.svd.unet.parameters())
        sleeping.wake()
        assert render(own, make_clip) == before


class FakeLayout:
    """A layout that remembers what it was told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.here = 100
        self.fault: Exception | None = None
        self.levers = Levers()

    def device_bytes(self) -> int:
        return self.here

    def park_all(self) -> None:
        self.done.append("park")
        self.here = 0

    def take(self, levers: Levers) -> Levers:
        self.levers = levers
        return levers

    def bring_all(self) -> None:
        self.done.append("bring")
        if self.levers.offload_idle_parts:
            return
        self.here = 50
        if self.fault is not None:
            raise self.fault
        self.here = 100


@pytest.fixture
def sleeping() -> SleepingVideo:
    class Model:
        layout = FakeLayout()
        device = Device("cuda", 0, "GPU-1", "a card", "cuda:0")

    return SleepingVideo(Model())  # type: ignore[arg-type]


def test_on_a_gpu_the_layout_does_it_and_a_failure_leaves_it_asleep(sleeping: SleepingVideo) -> None:
    layout: Any = sleeping._layout
    assert sleeping.weight_bytes == 100
    sleeping.sleep()
    assert (sleeping.weight_bytes, layout.here) == (100, 0)
    layout.fault = RuntimeError("it broke")
    with pytest.raises(RuntimeError, match="it broke"):
        sleeping.wake()
    assert (sleeping.weight_bytes, layout.here) == (100, 0)
    layout.fault = None
    sleeping.wake()
    assert (sleeping.weight_bytes, layout.here) == (100, 100)
    assert layout.done == ["park", "bring", "park", "bring"]


def test_where_not_all_has_room_any_more_parts_come_when_they_are_used(sleeping: SleepingVideo) -> None:
    layout: Any = sleeping._layout
    sleeping.sleep()
    layout.fault = torch.OutOfMemoryError("CUDA out of memory")
    sleeping.wake()
    assert layout.levers.offload_idle_parts
    assert (sleeping.weight_bytes, layout.here) == (0, 0)
    sleeping.sleep()
    sleeping.wake()  # as the levers are now
    assert layout.done == ["park", "bring", "park", "park", "bring"]
