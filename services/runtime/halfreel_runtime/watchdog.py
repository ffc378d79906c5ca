"""Notices that the running job makes no progress any more.

It does not know what a job is, nor what is done about a hung one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from halfreel_runtime.cancel import CancelToken

# A slow device is not a hung one: so many usual steps may pass in silence.
STALLED_STEP_COUNT = 20
# How much of a slow job's step each quicker job that follows leaves: short jobs say little of the next long one.
_FADING = 0.9


class Watchdog:
    """Watches one token at a time from a thread that sleeps until a job could be overdue.

    Args:
        stall_s: silence that is always allowed.
        on_stall: called once, from the watchdog's thread, with the seconds of silence.
    """

    def __init__(self, stall_s: float, on_stall: Callable[[float], None]) -> None:
        self._stall_s = stall_s
        self._on_stall = on_stall
        self._condition = threading.Condition()
        self._token: CancelToken | None = None
        self._usual_gap_s = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    def begin(self, token: CancelToken) -> None:
        """Watches a job from now on."""
        token.start()
        with self._condition:
            self._token = token
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
            self._condition.notify()

    def end(self) -> None:
        """The job has ended; its usual step is learnt."""
        with self._condition:
            if self._token is not None and (gap_s := self._token.mean_gap_s):
                self._usual_gap_s = max(gap_s, _FADING * self._usual_gap_s)
            self._token = None

    def close(self) -> None:
        """Ends the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _watch(self) -> None:
        with self._condition:
            while not self._closed:
                if self._token is None:
                    self._condition.wait()
                    continue
                usual_s = max(self._usual_gap_s, self._token.mean_gap_s)
                limit_s = max(self._stall_s, STALLED_STEP_COUNT * usual_s)
                silent_s = time.monotonic() - self._token.last_beat
                if silent_s >= limit_s:
                    break
                self._condition.wait(limit_s - silent_s)
            if self._closed:
                return
        self._on_stall(silent_s)
