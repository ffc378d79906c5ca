"""What an MP4 is, read from the file itself.

It does not know films or scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av


class DamagedVideoError(Exception):
    """The file is no MP4 that plays."""


@dataclass(frozen=True)
class VideoFacts:
    """The picture stream of an MP4.

    Attributes:
        width_px: width of the picture.
        height_px: height of the picture.
        frame_count: frames in the file.
        rate: frames a second.
        codec: such as "h264".
        pixel_format: such as "yuv420p".
        time_base: seconds that one unit of the file's time stamps is.
        extradata: the codec's own header; two streams may follow each other in one file only if it is the same.
    """

    width_px: int
    height_px: int
    frame_count: int
    rate: Fraction
    codec: str
    pixel_format: str
    time_base: Fraction
    extradata: bytes

    @property
    def duration_s(self) -> Fraction:
        """How long it plays."""
        return self.frame_count / self.rate

    def continues(self, other: VideoFacts) -> bool:
        """Whether this stream may follow the other in one file without encoding it again."""
        return (
            (self.width_px, self.height_px, self.rate) == (other.width_px, other.height_px, other.rate)
            and (self.codec, self.pixel_format) == (other.codec, other.pixel_format)
            and (self.time_base, self.extradata) == (other.time_base, other.extradata)
        )


def read_facts(path: Path) -> VideoFacts:
    """Counts the frames of an MP4, decodes the first, and tells what it is.

    Raises:
        DamagedVideoError: it can't be opened, has no picture stream, or its first frame can't be decoded.
    """
    try:
        # The format is given, so that no other of libav's many parsers ever sees the file.
        with av.open(str(path), format="mp4") as container:
            if not container.streams.video:
                raise DamagedVideoError("it has no picture stream")
            stream = container.streams.video[0]
            frame_count, first = 0, None
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                frame_count += 1
                if first is None:
                    first = next(iter(packet.decode()), None)
            if first is None:
                first = next(iter(stream.decode(None)), None)
            if first is None or not stream.average_rate:
                raise DamagedVideoError("it has no frame that can be decoded")
            return VideoFacts(
                width_px=stream.codec_context.width,
                height_px=stream.codec_context.height,
                frame_count=frame_count,
                rate=Fraction(stream.average_rate),
                codec=stream.codec_context.name,
                pixel_format=stream.codec_context.pix_fmt,
                time_base=Fraction(stream.time_base),
                extradata=bytes(stream.codec_context.extradata or b""),
            )
    except (av.error.FFmpegError, ValueError) as error:
        raise DamagedVideoError("it is no MP4 that can be read") from error
