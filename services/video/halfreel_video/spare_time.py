"""A gate that has something done in an engine's spare moments: piece by piece, between jobs and while there is none.

A job that comes meanwhile waits for one piece at most; with jobs in the queue, one piece is done between two of them.
Knows neither the work nor the model, but whether it is awake.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from halfreel_runtime.gate import Gate

# Between two pieces, so that a job that has come is seen.
_LOOK_S = 0.01
# After a look at which nothing could be done.
_REST_S = 1.0


class SpareTime:
    """The gate of an engine, around another.

    Args:
        gate: asked first, always.
        awake: whether the model is on its device.
    """

    def __init__(self, gate: Gate, awake: Callable[[], bool]) -> None:
        self._gate = gate
        self._awake = awake
        self._do: Callable[[], bool | None] | None = None
        self._rests_until = 0.0

    def spend(self, do: Callable[[], bool | None]) -> None:
        """Has work done from now on; call in the engine's thread.

        Args:
            do: does a piece of it, and tells whether there is more; None where nothing could be done now.
        """
        self._do = do

    @property
    def wake_failed(self) -> bool:
        """As the other gate's."""
        return self._gate.wake_failed

    @property
    def look_s(self) -> float | None:
        """How soon `idle` should be called."""
        look_s = self._gate.look_s
        if self._do is None or not self._awake():
            return look_s
        own_s = max(_LOOK_S, self._rests_until - time.monotonic())
        return own_s if look_s is None else min(look_s, own_s)

    def before_load(self, wanted: Callable[[], bool]) -> None:
        """As the other gate's."""
        self._gate.before_load(wanted)

    def enter(self, wanted: Callable[[], bool]) -> None:
        """As the other gate's."""
        self._gate.enter(wanted)

    def yielding(self) -> bool:
        """As the other gate's."""
        return self._gate.yielding()

    def leave(self, has_waiting: bool) -> None:
        """A piece, where the model is still awake afterwards."""
        self._gate.leave(has_waiting)
        self._piece()

    def idle(self) -> None:
        """A piece, likewise."""
        self._gate.idle()
        self._piece()

    def _piece(self) -> None:
        if self._do is None or not self._awake() or time.monotonic() < self._rests_until:
            return
        more = self._do()
        if more is None:
            self._rests_until = time.monotonic() + _REST_S
        elif not more:
            self._do = None
