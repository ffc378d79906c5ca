"""Takes a clip as a video server sends it, and checks that it is what was asked for and what was announced.

It does not know where the clip goes, nor what is done when it is wrong.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.video.v1 import video_pb2
from halfreel_gateway import films
from halfreel_gateway.clip import DamagedVideoError, read_facts

# A clip of 30 s at 60 frames a second of 2048x2048 at any sane rate is far smaller.
MAX_CLIP_BYTES = 1 << 30
# A picture that a video server would not take is of no use.
MAX_FRAME_BYTES = 10 << 20


class CorruptClipError(Exception):
    """What came is not what was announced or asked for; the text says in what."""


class ClipReceiver:
    """A clip in the making, in a file.

    Args:
        path: of the file, which is overwritten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._last_frame = bytearray()
        self._completed: video_pb2.GenerateResponse.Completed | None = None

    def __enter__(self) -> Self:
        """Opens the file."""
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def completed(self) -> video_pb2.GenerateResponse.Completed:
        """What the server said at the end.

        Raises:
            CorruptClipError: it said nothing.
        """
        if self._completed is None:
            raise CorruptClipError("the server did not say that it is complete")
        return self._completed

    def take(self, chunk: video_pb2.GenerateResponse.VideoChunk) -> None:
        """Writes one piece.

        Raises:
            CorruptClipError: the piece does not follow the one before, or the clip is absurdly large.
            OSError: it can't be written.
        """
        if chunk.offset_bytes != self._size_bytes:
            raise CorruptClipError(f"a piece is for byte {chunk.offset_bytes}; byte {self._size_bytes} is next")
        self._size_bytes += len(chunk.data)
        if self._size_bytes > MAX_CLIP_BYTES:
            raise CorruptClipError(f"it is larger than {MAX_CLIP_BYTES} bytes")
        self._digest.update(chunk.data)
        self._file.write(chunk.data)

    def take_last_frame(self, chunk: video_pb2.GenerateResponse.LastFrameChunk) -> None:
        """Takes one piece of the last frame.

        Raises:
            CorruptClipError: the piece does not follow the one before, or the picture is absurdly large.
        """
        if chunk.offset_bytes != len(self._last_frame):
            raise CorruptClipError(
                f"a piece of the last frame is for byte {chunk.offset_bytes}; byte {len(self._last_frame)} is next"
            )
        self._last_frame += chunk.data
        if len(self._last_frame) > MAX_FRAME_BYTES:
            raise CorruptClipError(f"its last frame is larger than {MAX_FRAME_BYTES} bytes")

    def complete(self, completed: video_pb2.GenerateResponse.Completed) -> None:
        """The server says that it has sent all."""
        self._completed = completed

    def checked(self, request: video_pb2.GenerateRequest) -> pb.Artifact:
        """The clip, after the file is closed.

        Args:
            request: what was asked for.

        Raises:
            CorruptClipError: it is not what was announced or asked for.
        """
        told = self.completed
        if told.size_bytes != self._size_bytes:
            raise CorruptClipError(f"it has {self._size_bytes} bytes; {told.size_bytes} were announced")
        if told.sha256 != self._digest.hexdigest():
            raise CorruptClipError("its SHA-256 is not the one announced")
        try:
            facts = read_facts(self._path)
        except DamagedVideoError as error:
            raise CorruptClipError(str(error)) from error
        if facts.frame_count != request.frame_count:
            raise CorruptClipError(f"it has {facts.frame_count} frames; {request.frame_count} were asked for")
        if (facts.width_px, facts.height_px) != (request.width_px, request.height_px):
            raise CorruptClipError(
                f"it is {facts.width_px}x{facts.height_px}, not {request.width_px}x{request.height_px}"
            )
        if facts.rate != request.fps:
            raise CorruptClipError(f"it has {float(facts.rate):g} frames a second; {request.fps} were asked for")
        return pb.Artifact(
            size_bytes=self._size_bytes,
            sha256=told.sha256,
            width_px=facts.width_px,
            height_px=facts.height_px,
            frame_count=facts.frame_count,
            fps=request.fps,
            duration=films.duration(float(facts.duration_s)),
        )

    def last_frame(self) -> bytes:
        """The PNG of the last frame, which was asked for.

        Raises:
            CorruptClipError: it is not what was announced.
        """
        frame = bytes(self._last_frame)
        if not frame:
            raise CorruptClipError("its last frame is missing")
        if hashlib.sha256(frame).hexdigest() != self.completed.last_frame_sha256:
            raise CorruptClipError("the SHA-256 of its last frame is not the one announced")
        return frame

    def stage_figures(self) -> list[pb.StageFigure]:
        """What each stage took."""
        return [
            pb.StageFigure(stage=stage_name(each.stage), duration=each.duration)
            for each in self.completed.stage_durations
        ]


def stage_name(stage: video_pb2.Stage.ValueType) -> str:
    """A stage as films tell it: "keyframe" of STAGE_KEYFRAME; "stage N" for one of a newer server."""
    try:
        return video_pb2.Stage.Name(stage).removeprefix("STAGE_").lower()
    except ValueError:
        return f"stage {stage}"
