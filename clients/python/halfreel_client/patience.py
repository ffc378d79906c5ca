"""How long a call is tried again, and when; it knows no call."""

from __future__ import annotations

import random
import time

from halfreel_client.errors import HalfreelError, Unavailable

_FIRST_DELAY_S = 0.25
_LAST_DELAY_S = 5.0

# Raised to a reader who left too much unread: nothing is wrong with the server, and stored events can be had again.
_SLOW_READER = "SLOW_READER"


class Patience:
    """The delays between the tries of one call that may be made again: doubling, jittered, and for so long only."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        """To be called when something was heard: patience begins anew."""
        self._since: float | None = None
        self._delay_s = _FIRST_DELAY_S

    def delay_s(self, error: HalfreelError) -> float:
        """Seconds until the next try.

        Raises:
            HalfreelError: `error` itself, when trying again does not help or patience is at its end.
        """
        if not isinstance(error, Unavailable) and error.reason != _SLOW_READER:
            raise error
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        delay_s = max(self._delay_s * random.uniform(0.75, 1.25), error.retry_after_s or 0.0)
        if now + delay_s - self._since > self._limit_s:
            raise error
        self._delay_s = min(self._delay_s * 2, _LAST_DELAY_S)
        return delay_s
