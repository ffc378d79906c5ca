"""The MP4: it plays anywhere, starts at once, and joins without re-encoding."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest

from halfreel_video.mp4 import Mp4Writer, encoder_available


def film(frame_count: int = 20, fps: int = 7, shift: int = 0, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    with Mp4Writer(width_px=64, height_px=48, fps=fps, frame_count=frame_count) as writer:
        for index in range(frame_count):
            frame = np.full((48, 64, 3), colour, np.uint8)
            frame[:, (index + shift) % 60 : (index + shift) % 60 + 4] = 255
            writer.add(frame)
        return writer.finish()


def boxes(mp4: bytes) -> list[str]:
    names, offset = [], 0
    while offset < len(mp4):
        size, name = struct.unpack(">I4s", mp4[offset : offset + 8])
        names.append(name.decode())
        offset += size
    return names


@pytest.mark.parametrize(("frame_count", "fps"), [(2, 1), (20, 7), (25, 24), (130, 60)])
def test_it_plays_with_constant_rate(frame_count: int, fps: int) -> None:
    with av.open(io.BytesIO(film(frame_count, fps))) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.average_rate == fps
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(frame_count / fps)
    times = [float(frame.pts * frame.time_base) for frame in frames]
    assert times == pytest.approx([index / fps for index in range(frame_count)], abs=1e-4)


def test_its_index_comes_before_its_frames() -> None:
    names = boxes(film())
    assert names.index("moov") < names.index("mdat")


def test_a_long_clip_of_noise_finds_room_for_its_index() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    with Mp4Writer(width_px=64, height_px=64, fps=1, frame_count=1800) as writer:
        for index in range(1800):
            writer.add(noise[index % 60])
        mp4 = writer.finish()
    assert boxes(mp4).index("moov") < boxes(mp4).index("mdat")


def test_colours_are_kept() -> None:
    with av.open(io.BytesIO(film(colour=(200, 30, 30)))) as container:
        pixel = next(container.decode(video=0)).to_ndarray(format="rgb24")[40, 60]
    assert np.abs(pixel.astype(int) - (200, 30, 30)).max() <= 6


def test_same_frames_same_bytes() -> None:
    assert len({film() for _ in range(100)}) == 1
    assert film() != film(shift=1)


def test_two_clips_join_without_encoding_again() -> None:
    clips = [film(shift=0), film(15, shift=9)]
    joined = io.BytesIO()
    with av.open(joined, "w", format="mp4") as output:
        stream, offset = None, 0
        for clip in clips:
            with av.open(io.BytesIO(clip)) as source:
                video = source.streams.video[0]
                if stream is None:
                    stream, extradata = output.add_stream_from_template(video), video.codec_context.extradata
                assert video.codec_context.extradata == extradata
                for packet in source.demux(video):
                    if packet.dts is None:
                        continue
                    assert packet.pts == packet.dts  # no B-frames
                    packet.stream = stream
                    packet.pts += offset
                    packet.dts += offset
                    output.mux(packet)
                offset += video.duration
    with av.open(io.BytesIO(joined.getvalue())) as container:
        frames = [frame.to_ndarray() for frame in container.decode(video=0)]
    expected = []
    for clip in clips:
        with av.open(io.BytesIO(clip)) as container:
            expected += [frame.to_ndarray() for frame in container.decode(video=0)]
    assert len(frames) == 35
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))


def test_the_encoder_is_there() -> None:
    assert encoder_available()
