"""Wakes the event loop once for all the replies that a step moved on, instead of once for each.

Every wake costs both threads a switch: the loop takes the interpreter as soon as it is called, and the engine waits for
it. Knows no reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from halfreel_runtime.events import EventBuffer

E = TypeVar("E")


class Wakes:
    """The wakes of one engine's steps."""

    def __init__(self) -> None:
        """Holds none back."""
        self._stepping: int | None = None
        self._held: dict[asyncio.AbstractEventLoop, list[Callable[[], object]]] = {}

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around one step: what this thread wakes meanwhile is woken at its end."""
        self._stepping = threading.get_ident()
        try:
            yield
        finally:
            self._stepping = None
            held, self._held = self._held, {}
            for loop, callbacks in held.items():
                with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the readers
                    loop.call_soon_threadsafe(_call, callbacks)

    @property
    def in_step(self) -> bool:
        """Whether this thread is in a step."""
        return self._stepping == threading.get_ident()

    def hold(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> bool:
        """Returns whether a wake was held back; from another thread than the one that steps, none is."""
        if not self.in_step:
            return False
        self._held.setdefault(loop, []).append(callback)
        return True


class StepEvents(EventBuffer[E]):
    """An `EventBuffer` whose reader is woken at the end of the step that fills it."""

    def __init__(self, max_event_count: int, merge: Callable[[E, E], E | None] | None, wakes: Wakes) -> None:
        """As `EventBuffer`; `wakes` are the engine's."""
        super().__init__(max_event_count, merge)
        self._wakes = wakes

    def _wake(self) -> None:
        if self._woken and self._wakes.in_step:
            return
        if self._wakes.hold(self._loop, self._readable.set):
            self._woken = True
            return
        self._woken = False  # another thread, as at the engine's death, does not count on a step that may never end
        super()._wake()


def _call(callbacks: list[Callable[[], object]]) -> None:
    for callback in callbacks:
        callback()
