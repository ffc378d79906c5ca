"""RGB frames to an MP4 in memory. Knows nothing of models, requests or files.

Settings are fixed, so that clips of one size and frame rate have the same codec data and can be joined without
re-encoding: every clip starts with an IDR frame, GOPs are closed and there are no B-frames. The result does not depend
on the number of cores, since x264 splits a picture by its thread count, which is fixed too; nor on chance, since its
macroblock tree is off (with it, 4 of 1,000 encodings of the same small pictures came out otherwise; without, none).
"""

from __future__ import annotations

import io

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

ENCODER = "libx264"

_THREAD_COUNT = 2
_BT709 = 1  # of color_primaries and color_trc in ITU-T H.273
# Bytes kept free at the file's start for its index, which then needs no second pass and no file on a disk: an index
# took 700 bytes and 4 to 6 for each frame.
_INDEX_BYTES = 4096
_INDEX_BYTES_PER_FRAME = 32


def encoder_available() -> bool:
    """Tells whether this build of PyAV can encode H.264."""
    return ENCODER in av.codecs_available


class Mp4Writer:
    """Encodes frames as they come: H.264, yuv420p, BT.709, constant frame rate, index first.

    Use it as a context manager; on leaving, the encoder is freed, finished or not.
    """

    def __init__(self, *, width_px: int, height_px: int, fps: int, frame_count: int) -> None:
        """Opens the encoder.

        Args:
            width_px: even.
            height_px: even.
            fps: frames a second.
            frame_count: the most frames that will be added; room for the index is kept by it.
        """
        self._buffer = io.BytesIO()
        index_bytes = _INDEX_BYTES + _INDEX_BYTES_PER_FRAME * frame_count
        self._container = av.open(
            self._buffer,
            "w",
            format="mp4",
            options={"moov_size": str(index_bytes), "fflags": "+bitexact"},
        )
        gop_frame_count = 2 * fps
        stream = self._container.add_stream(
            ENCODER,
            rate=fps,
            options={
                "preset": "veryfast",
                "crf": "18",
                "profile": "high",
                "x264-params": "bframes=0:mbtree=0:open-gop=0:scenecut=0:"
                f"keyint={gop_frame_count}:min-keyint={gop_frame_count}",
            },
        )
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = _THREAD_COUNT
        codec.color_range = ColorRange.MPEG
        codec.colorspace = Colorspace.ITU709
        codec.color_primaries = codec.color_trc = _BT709
        self._stream = stream
        self._frame_count = 0

    def __enter__(self) -> Mp4Writer:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the encoder."""
        self._container.close()

    @property
    def frame_count(self) -> int:
        """Frames added so far."""
        return self._frame_count

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Encodes one RGB frame of shape (height, width, 3)."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        picture.pts = self._frame_count
        self._frame_count += 1
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    def finish(self) -> bytes:
        """Ends the file and returns all of it."""
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        return self._buffer.getvalue()
