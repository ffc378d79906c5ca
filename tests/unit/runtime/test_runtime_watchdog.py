"""What the watchdog takes for usual: the slow steps of the jobs before, and of the running one."""

from __future__ import annotations

import threading
import time

import pytest

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.watchdog import STALLED_STEP_COUNT, Watchdog

STEP_S = 0.05
# In real time: the watchdog has looked several times by then, if 0.1 s of silence were its limit.
LOOKS_S = 0.5


class Clock:
    """Time that passes by hand: however busy the machine is, steps take as long as a test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("halfreel_runtime.cancel.time", clock)
    monkeypatch.setattr("halfreel_runtime.watchdog.time", clock)
    return clock


def job(watchdog: Watchdog, clock: Clock, steps: int, step_s: float) -> None:
    token = CancelToken()
    watchdog.begin(token)
    for _ in range(steps):
        clock.now += step_s
        token.beat()
    watchdog.end()


def test_short_jobs_do_not_make_a_long_step_suspect(clock: Clock) -> None:
    stalls: list[float] = []
    watchdog = Watchdog(0.1, stalls.append)
    job(watchdog, clock, 3, STEP_S)
    job(watchdog, clock, 0, 0)  # refused at its beginning: it says nothing of a step
    job(watchdog, clock, 3, 0.0001)
    token = CancelToken()
    watchdog.begin(token)
    clock.now += 0.5 * STALLED_STEP_COUNT * STEP_S  # far beyond 0.1 s, and usual for a slow model
    time.sleep(LOOKS_S)
    token.beat()
    assert not stalls
    watchdog.end()
    watchdog.close()


def test_a_job_that_is_slow_from_its_first_step_is_not_hung(clock: Clock) -> None:
    stalls: list[float] = []
    watchdog = Watchdog(0.12, stalls.append)
    token = CancelToken()
    watchdog.begin(token)
    for _ in range(2):
        clock.now += STEP_S
        token.beat()
    clock.now += 0.4
    time.sleep(LOOKS_S)
    assert not stalls
    watchdog.end()
    watchdog.close()


def test_silence_is_noticed_all_the_same() -> None:
    stalled = threading.Event()
    watchdog = Watchdog(0.1, lambda _: stalled.set())
    watchdog.begin(CancelToken())
    assert stalled.wait(20)
    watchdog.close()
