"""Encodes frames in a thread of its own, so that a clip's MP4 grows while the model decodes the frames that follow.

The frames, their order and so the bytes are those of an Mp4Writer used directly. Knows nothing of where frames come
from.
"""

from __future__ import annotations

import queue
import threading

import numpy as np
from numpy.typing import NDArray

from halfreel_video.mp4 import Mp4Writer

_WAITING_FRAME_COUNT = 16  # 27 MiB at 1024x576: two chunks of the usual size


class FrameWriter:
    """Passes frames on to an Mp4Writer; use it as a context manager.

    What the encoder raises comes out of the next `add` or of `finish`. On leaving, frames that still wait are dropped
    and the thread has ended.
    """

    def __init__(self, writer: Mp4Writer) -> None:
        """Takes the writer over, with what frees it.

        Args:
            writer: used by the thread alone from now on.
        """
        self._writer = writer
        self._waiting: queue.Queue[NDArray[np.uint8] | None] = queue.Queue(_WAITING_FRAME_COUNT)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="mp4", daemon=True)

    def __enter__(self) -> FrameWriter:
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the thread and frees the encoder, finished or not."""
        self._dropping = True
        self._end()
        with self._writer:
            pass

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Takes one RGB frame of shape (height, width, 3), which must not change any more; waits where many do."""
        self._raise()
        self._waiting.put(frame)

    def finish(self) -> bytes:
        """Waits for all frames, ends the file and returns all of it."""
        self._end()
        self._raise()
        return self._writer.finish()

    def _end(self) -> None:
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        # Goes on after an error too, without encoding, so that nobody waits for room for ever.
        while (frame := self._waiting.get()) is not None:
            if self._dropping or self._error is not None:
                continue
            try:
                self._writer.add(frame)
            except BaseException as error:  # handed to the job's thread
                self._error = error
