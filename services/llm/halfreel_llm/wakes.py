"""Wakes the event loop once for all the replies that a step moved on, instead of once for each.

Every wake costs both threads a switch: the loop takes the interpreter as soon as it is called, and the engine waits for
it. Knows no reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from halfreel_runtime.events import EventBuffer

E = TypeVar("E")


class Wakes:
    """The wakes of one engine's steps: `with wakes:` around each."""

    def __init__(self) -> None:
        """Holds none back."""
        self.stepping: int | None = None
        """The thread that is in a step."""
        self.held: list[StepEvents[Any]] = []
        """Whose readers are woken at its end."""

    def __enter__(self) -> None:
        """Begins a step: what this thread wakes from now on is woken at its end."""
        self.stepping = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self.stepping = None
        held, self.held = self.held, []
        loops: dict[asyncio.AbstractEventLoop, list[StepEvents[Any]]] = {}
        for buffer in held:
            loops.setdefault(buffer.loop, []).append(buffer)
        for loop, buffers in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the readers
                loop.call_soon_threadsafe(_wake_all, buffers)


class StepEvents(EventBuffer[E]):
    """An `EventBuffer` whose reader is woken at the end of the step that fills it."""

    def __init__(self, max_event_count: int, merge: Callable[[E, E], E | None] | None, wakes: Wakes) -> None:
        """As `EventBuffer`; `wakes` are the engine's."""
        super().__init__(max_event_count, merge)
        self._wakes = wakes

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The reader's."""
        return self._loop

    def wake(self) -> None:
        """Wakes the reader; in its loop."""
        self._wake_reader()

    def _wake(self) -> None:
        if self._wakes.stepping == threading.get_ident():
            if not self._woken:
                self._woken = True
                self._wakes.held.append(self)
            return
        self._woken = False  # another thread, as at the engine's death, does not count on a step that may never end
        super()._wake()


def _wake_all(buffers: list[StepEvents[Any]]) -> None:
    for buffer in buffers:
        buffer.wake()
