"""The bounded buffer of a job's events, filled by the engine's thread and read by one asyncio task.

It does not know what an event is; two may be joined by a function that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from halfreel_runtime.errors import SlowReader

E = TypeVar("E")


class EventBuffer(Generic[E]):
    """Events on their way from one thread to one loop; the loop is woken once for all that lie unread.

    Args:
        max_event_count: events kept unread before the reader counts as too slow.
        merge: joins the last unread event with a new one, or tells by None that it can't.
    """

    def __init__(self, max_event_count: int, merge: Callable[[E, E], E | None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._lock = threading.Lock()
        self._events: deque[E] = deque()
        self._end: BaseException | None = None
        self._ended = False
        self._woken = False
        self._max_event_count = max_event_count
        self._merge = merge

    def put(self, event: E) -> None:
        """Adds an event, or joins it to the last unread one; from any thread.

        Raises:
            SlowReader: the buffer is full; what lay unread is dropped.
        """
        with self._lock:
            if self._ended:
                return
            if self._merge is not None and self._events:
                joined = self._merge(self._events[-1], event)
                if joined is not None:
                    self._events[-1] = joined
                    return
            if len(self._events) >= self._max_event_count:
                self._events.clear()
                raise SlowReader(
                    f"More than {self._max_event_count} events lay unread; read the stream as it comes.",
                    metadata={"max_event_count": str(self._max_event_count)},
                )
            self._events.append(event)
            self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Ends the stream, after the events that lie unread; only the first call counts. From any thread."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._end = error
                self._wake()

    async def get(self) -> E | None:
        """The next event, or None at the end.

        Raises:
            BaseException: whatever the stream was ended with.
        """
        while True:
            with self._lock:
                if self._events:
                    return self._events.popleft()
                if self._ended:
                    if self._end is not None:
                        raise self._end
                    return None
                self._woken = False
                self._reader = self._loop.create_future()  # one token, one wait: an asyncio.Event takes twice the time
            await self._reader

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the reader
            self._loop.call_soon_threadsafe(self._wake_reader)

    def _wake_reader(self) -> None:
        """Has the reader look again; in its loop. One wake too many does no harm."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
