"""The side of an engine that lives in its thread: it loads the model, takes jobs off the queue, and runs them.

Before the model is used its gate is asked, which wakes it where it sleeps. It does not know who asked for a job, nor
what a job computes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, Protocol, TypeVar

from halfreel_runtime.errors import (
    Cancelled,
    EngineDead,
    FailedPrecondition,
    FatalError,
    HalfreelError,
    InvalidArgument,
    NotFound,
    WakeFailed,
)
from halfreel_runtime.failures import engine_error, release_frames
from halfreel_runtime.gate import Gate, OpenGate
from halfreel_runtime.job import EngineState, Job
from halfreel_runtime.watchdog import Watchdog

E = TypeVar("E")
_logger = logging.getLogger(__name__)

# How much a new job counts in the mean time of a job: ten jobs back hardly count.
_MEAN_WEIGHT = 0.2
# A client that is told of a loading model or a dead engine comes back after this.
LOADING_RETRY_S = 2.0


class Observer(Protocol):
    """Hears how long things took; its methods must be quick, and never raise."""

    def queued(self, seconds: float) -> None:
        """A job's turn came after this time."""

    def cancelled(self, seconds: float) -> None:
        """A job ended this long after nobody waited for it any more."""


class EngineThread(Generic[E]):
    """What the engine's thread does, and the state that it shares with those who ask, under one condition.

    Args:
        name: of the thread, for logs.
        max_waiting_count: jobs that may wait while another runs.
        max_event_count: events kept unread per job before its reader counts as too slow. The bound counts events,
            not bytes: a job should hand over large results as one event, and the caller cut them up.
        stall_s: a running job without progress for so long, and for many of its usual steps, is hung.
        observer: told of waiting and of cancels; None for nobody.
        gate: wakes the model before it is used, and may send it to sleep; None for a model that never sleeps.
    """

    def __init__(
        self,
        *,
        name: str,
        max_waiting_count: int,
        max_event_count: int = 1024,
        stall_s: float = 60.0,
        observer: Observer | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._name = name
        self._max_waiting_count = max_waiting_count
        self._max_event_count = max_event_count
        self._observer = observer
        self._gate = gate if gate is not None else OpenGate()
        self._condition = threading.Condition()
        self._waiting: deque[Job[E]] = deque()
        self._running: list[Job[E]] = []
        self._state = EngineState.LOADING
        self._closed = False
        # Whether loading failed by what the engine was told: loading once more would fail as well.
        self.misconfigured = False
        self._mean_job_s = 0.0
        self._started_at = 0.0
        self._callbacks: list[Callable[[EngineState], None]] = []
        self._on_idle: list[Callable[[], object]] = []
        self._watchdog = Watchdog(stall_s, self._stalled)
        self._thread: threading.Thread | None = None

    def _live(self, prepare: Callable[[], None]) -> None:
        try:
            self._gate.before_load(lambda: not self._closed and self._state is EngineState.LOADING)
            prepare()
        except BaseException as error:
            if isinstance(error, Cancelled):  # told to stop before it was its turn to load
                return
            release_frames(error)
            self.misconfigured = isinstance(error, InvalidArgument | NotFound | FailedPrecondition)
            # A refusal of ours (a model folder without safetensors) says all in its message.
            _logger.error(
                "model_not_loaded",
                extra={"reason": str(error)},
                exc_info=None if isinstance(error, HalfreelError) else error,
            )
            self._die()
            return
        with self._condition:
            if self._state is EngineState.LOADING:
                self._set_state(EngineState.SERVING)
        while self._state is not EngineState.DEAD and self._serve_next():
            pass

    def _serve_next(self) -> bool:
        """Runs the next job; a frame of its own, so that nothing of a finished job stays referred to."""
        with self._condition:
            while not self._waiting:
                if self._closed or self._state is EngineState.DEAD:
                    return False
                self._wait_for_job()
            job = self._waiting.popleft()
            self._running.append(job)
            self._started_at = time.monotonic()
        self._run_alone(job)
        return True

    def _run_alone(self, job: Job[E]) -> None:
        """Runs a job that was taken from the queue, from its first event to its end."""
        error = self._enter_gate() if job.needs_model else None
        self._tell_begun(job)
        if error is None:
            error = self._run_watched(job)
        self._tell_ended(job)
        with self._condition:
            self._running.remove(job)
            if error is None and not job.token.cancelled:
                seconds = time.monotonic() - self._started_at
                self._mean_job_s += (_MEAN_WEIGHT if self._mean_job_s else 1.0) * (seconds - self._mean_job_s)
            self._changed()
        if isinstance(error, FatalError):
            job.events.end(EngineDead("The engine failed during this request."))
            self._die()
        else:
            job.events.end(error)
            if job.needs_model:
                self._leave_gate()

    def _run_watched(self, job: Job[E]) -> BaseException | None:
        """Runs a job under the watchdog's eyes; returns what its client should hear of, or None."""
        self._watchdog.begin(job.token)
        error: BaseException | None = None
        try:
            job.context.run(self._drive, job)
        except BaseException as raised:
            release_frames(raised)
            error = engine_error(raised)
            if error is not raised:
                _logger.error("job_failed", extra={"reason": str(error)}, exc_info=raised)
        self._watchdog.end()
        return error

    def _drive(self, job: Job[E]) -> None:
        """Runs a job to its end, or until nobody waits for it."""
        job.token.raise_if_cancelled()
        iterator = job.steps(job.token)
        try:
            for event in iterator:
                job.token.raise_if_cancelled()
                job.events.put(event)
        finally:
            if isinstance(iterator, Generator):  # frees its tensors now, not when it is collected
                iterator.close()

    # The gate, at which nobody is watched: whoever wakes a model may be slow.

    def _wait_for_job(self) -> None:
        """Waits until something has changed; the gate may work meanwhile. Call with the condition held."""
        look_s = self._gate.look_s
        if self._condition.wait(look_s) or look_s is None:
            return
        self._condition.release()
        try:
            self._at_gate(self._gate.idle)
        finally:
            self._condition.acquire()

    def _enter_gate(self) -> BaseException | None:
        """Has the model woken; returns why not, or None."""
        return self._at_gate(lambda: self._gate.enter(self._model_wanted))

    def _leave_gate(self) -> None:
        """The model was used."""
        self._at_gate(lambda: self._gate.leave(bool(self._waiting)))

    def _model_wanted(self) -> bool:
        """Whether anybody still waits for the model."""
        with self._condition:
            jobs = [*self._running, *self._waiting]
        return not self._closed and any(not job.token.cancelled for job in jobs)

    def _at_gate(self, do: Callable[[], None]) -> BaseException | None:
        """Lets the gate do something; returns what it raised. The engine's state follows the model's."""
        error: BaseException | None = None
        try:
            do()
        except BaseException as raised:
            release_frames(raised)
            error = engine_error(raised)
            if not isinstance(error, Cancelled | WakeFailed):
                _logger.error("gate_failed", extra={"reason": str(error)}, exc_info=raised)
        with self._condition:
            state = EngineState.WAKE_FAILED if self._gate.wake_failed else EngineState.SERVING
            if self._state in (EngineState.SERVING, EngineState.WAKE_FAILED) and self._state is not state:
                self._set_state(state)
        if isinstance(error, FatalError):
            self._die()
        return error

    def _tell_begun(self, job: Job[E]) -> None:
        """Call when a job's turn has come."""
        if self._observer is not None:
            job.context.run(self._observer.queued, time.monotonic() - job.queued_at)

    def _tell_ended(self, job: Job[E]) -> None:
        """Call when the work on a job is over, before its last event is told."""
        if self._observer is not None and job.token.cancelled:
            job.context.run(self._observer.cancelled, job.token.cancelled_s)

    # Ends.

    def _stalled(self, silent_s: float) -> None:
        _logger.critical("engine_stalled", extra={"silent_s": round(silent_s, 1)})
        self._die()

    def _die(self) -> None:
        with self._condition:
            if self._state is EngineState.DEAD:
                return
            jobs = [*self._waiting, *self._running]
            self._waiting.clear()
            self._set_state(EngineState.DEAD)
        for job in jobs:
            job.token.cancel()
            job.events.end(EngineDead("The engine failed; the server restarts.", retry_after_s=LOADING_RETRY_S))

    def _set_state(self, state: EngineState) -> None:
        """Call with the condition held."""
        self._state = state
        self._changed()
        for callback in self._callbacks:
            callback(state)

    def _changed(self) -> None:
        """Tells whoever waits for a job, or for the end of all; call with the condition held."""
        self._condition.notify_all()
        if not self._waiting and not self._running:
            while self._on_idle:
                self._on_idle.pop()()
