"""What the watchdog takes for usual: the slow steps of the jobs before, and of the running one."""

from __future__ import annotations

import threading
import time

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.watchdog import STALLED_STEP_COUNT, Watchdog

STEP_S = 0.05


def job(watchdog: Watchdog, steps: int, step_s: float) -> None:
    token = CancelToken()
    watchdog.begin(token)
    for _ in range(steps):
        time.sleep(step_s)
        token.beat()
    watchdog.end()


def test_short_jobs_do_not_make_a_long_step_suspect() -> None:
    stalls: list[float] = []
    watchdog = Watchdog(0.1, stalls.append)
    job(watchdog, 3, STEP_S)
    job(watchdog, 0, 0)  # refused at its beginning: it says nothing of a step
    job(watchdog, 3, 0.0)
    token = CancelToken()
    watchdog.begin(token)
    time.sleep(0.5 * STALLED_STEP_COUNT * STEP_S)  # far beyond 0.1 s, and usual for a slow model
    token.beat()
    assert not stalls
    watchdog.end()
    watchdog.close()


def test_a_job_that_is_slow_from_its_first_step_is_not_hung() -> None:
    stalls: list[float] = []
    watchdog = Watchdog(0.12, stalls.append)
    token = CancelToken()
    watchdog.begin(token)
    for _ in range(2):
        time.sleep(STEP_S)
        token.beat()
    time.sleep(0.4)
    assert not stalls
    watchdog.end()
    watchdog.close()


def test_silence_is_noticed_all_the_same() -> None:
    stalled = threading.Event()
    watchdog = Watchdog(0.1, lambda _: stalled.set())
    watchdog.begin(CancelToken())
    assert stalled.wait(2)
    watchdog.close()
