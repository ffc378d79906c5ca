"""Frames encoded beside the model: the same bytes, its errors, and nothing left behind."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from halfreel_video.frame_writer import FrameWriter
from halfreel_video.mp4 import Mp4Writer


def frames(count: int) -> list[np.ndarray]:
    draws = np.random.default_rng(4)
    picture = draws.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    return [np.roll(picture, 3 * index, axis=1) for index in range(count)]


def open_mp4(count: int) -> Mp4Writer:
    return Mp4Writer(width_px=128, height_px=96, fps=7, frame_count=count)


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "mp4"]


def test_the_same_bytes_as_without_the_thread() -> None:
    given = frames(40)
    with open_mp4(40) as direct:
        for frame in given:
            direct.add(frame)
        expected = direct.finish()
    for _ in range(3):
        with FrameWriter(open_mp4(40)) as writer:
            for frame in given:
                writer.add(frame)
            assert writer.finish() == expected
        assert not threads()


class Slow(Mp4Writer):
    """Takes its time over a frame."""

    def add(self, frame: Any) -> None:
        time.sleep(0.01)
        super().add(frame)


def test_few_frames_wait_and_the_giver_does() -> None:
    began_at = time.monotonic()
    with FrameWriter(Slow(width_px=128, height_px=96, fps=7, frame_count=40)) as writer:
        for frame in frames(40):
            writer.add(frame)
            assert writer._waiting.qsize() <= 16
        assert time.monotonic() - began_at > 0.2
        writer.finish()


def test_leaving_early_encodes_no_more_and_leaves_no_thread() -> None:
    slow = Slow(width_px=128, height_px=96, fps=7, frame_count=40)
    with pytest.raises(InterruptedError), FrameWriter(slow) as writer:
        for frame in frames(10):
            writer.add(frame)
        raise InterruptedError
    assert slow.frame_count < 10
    assert not threads()


class Broken(Mp4Writer):
    """Fails at its third frame."""

    def add(self, frame: Any) -> None:
        if self.frame_count == 2:
            raise OSError("disk")
        super().add(frame)


@pytest.mark.parametrize("count", [3, 60])
def test_an_error_of_the_encoder_comes_out(count: int) -> None:
    with (
        pytest.raises(OSError, match="disk"),
        FrameWriter(Broken(width_px=128, height_px=96, fps=7, frame_count=count)) as writer,
    ):
        for frame in frames(count):
            writer.add(frame)
        writer.finish()
    assert not threads()
