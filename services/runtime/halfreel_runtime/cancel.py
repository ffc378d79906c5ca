"""The token by which a job learns that nobody waits for it any more, and tells that it still makes progress.

It does not know why it was cancelled, but for a deadline that passed.
"""

from __future__ import annotations

import contextvars
import threading
import time

from halfreel_runtime.errors import Cancelled, DeadlineExceeded

# time.monotonic() at which the present call's client stops waiting; set at the server's boundary.
deadline_var: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


class CancelToken:
    """Passed to every job, which looks at it at every token, denoising step and decoded chunk.

    Args:
        deadline: the time.monotonic() after which the token counts as cancelled; None for never.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._event = threading.Event()
        self._deadline = deadline
        self._asked_at = 0.0
        self._started_at = self._last_beat = time.monotonic()
        self._beat_count = 0

    @property
    def cancelled(self) -> bool:
        """Whether the job's result is no longer wanted."""
        return self._event.is_set() or self.expired

    @property
    def expired(self) -> bool:
        """Whether the client's deadline passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def cancelled_s(self) -> float:
        """For how long the token has been cancelled; 0 while it is not."""
        now = time.monotonic()
        since = [self._asked_at] if self._event.is_set() else []
        if self._deadline is not None and now >= self._deadline:
            since.append(self._deadline)
        return now - min(since) if since else 0.0

    @property
    def last_beat(self) -> float:
        """The time.monotonic() of the last progress."""
        return self._last_beat

    @property
    def mean_gap_s(self) -> float:
        """The mean time between two signs of progress; 0 before the first."""
        return (self._last_beat - self._started_at) / self._beat_count if self._beat_count else 0.0

    def start(self) -> None:
        """The job's turn has come: its steps are timed from here."""
        self._started_at = self._last_beat = time.monotonic()

    def cancel(self) -> None:
        """Asks the job to stop; safe from any thread, any number of times."""
        if not self._event.is_set():
            self._asked_at = time.monotonic()
            self._event.set()

    def beat(self) -> None:
        """Tells the watchdog that there was progress, where a job has nothing to yield."""
        self._last_beat = time.monotonic()
        self._beat_count += 1

    def raise_if_cancelled(self) -> None:
        """Counts as progress, and ends a job that nobody waits for.

        Raises:
            DeadlineExceeded: the client's deadline passed.
            Cancelled: the client cancelled, or is gone.
        """
        self.beat()
        if self.expired:
            raise DeadlineExceeded("The deadline passed.")
        if self._event.is_set():
            raise Cancelled("The call was cancelled.")
