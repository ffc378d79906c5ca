"""One thread that owns the model; everything else awaits it.

A job is a blocking generator that runs in the engine's thread; its events cross to the caller's asyncio loop
through one bounded buffer. Jobs wait in one bounded queue and run one at a time, in order. Before the model is used its
gate is asked, which wakes it where it sleeps.

It does not know gRPC, nor what a job computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Generic, Protocol, TypeVar

from halfreel_runtime.cancel import CancelToken, deadline_var
from halfreel_runtime.errors import (
    Cancelled,
    Draining,
    EngineDead,
    FailedPrecondition,
    FatalError,
    HalfreelError,
    InvalidArgument,
    ModelLoading,
    NotFound,
    QueueFull,
    WakeFailed,
)
from halfreel_runtime.events import EventBuffer
from halfreel_runtime.failures import engine_error, release_frames
from halfreel_runtime.gate import Gate, OpenGate
from halfreel_runtime.job import EngineState, Job, Queued
from halfreel_runtime.watchdog import Watchdog

__all__ = ["Engine", "EngineState", "Queued"]

E = TypeVar("E")
_logger = logging.getLogger(__name__)

# How much a new job counts in the mean time of a job: ten jobs back hardly count.
_MEAN_WEIGHT = 0.2
_MIN_RETRY_S, _MAX_RETRY_S = 0.5, 300.0
# A client that is told of a loading model or a dead engine comes back after this.
_LOADING_RETRY_S = 2.0


class Observer(Protocol):
    """Hears how long things took; its methods must be quick, and never raise."""

    def queued(self, seconds: float) -> None:
        """A job's turn came after this time."""

    def cancelled(self, seconds: float) -> None:
        """A job ended this long after nobody waited for it any more."""


class Engine(Generic[E]):
    """Runs jobs one at a time in a thread of its own; E is the type of their events.

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

    # What others may ask, from any thread; none of these waits.

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""
        return self._state

    @property
    def waiting_count(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting)

    @property
    def running_count(self) -> int:
        """Jobs that run: 0 or 1, or more in an engine that batches."""
        return len(self._running)

    @property
    def oldest_wait_s(self) -> float:
        """For how long the oldest waiting job waits; 0 when none does."""
        with self._condition:
            return time.monotonic() - self._waiting[0].queued_at if self._waiting else 0.0

    @property
    def silent_s(self) -> float:
        """For how long no running job has shown progress; 0 when none runs."""
        beats = [job.token.last_beat for job in list(self._running)]
        return max(0.0, time.monotonic() - max(beats)) if beats else 0.0

    @property
    def mean_job_s(self) -> float:
        """How long a job takes, the latest counting most; 0 before the first has finished."""
        return self._mean_job_s

    @property
    def max_waiting_count(self) -> int:
        """Jobs that may wait while another runs."""
        return self._max_waiting_count

    def on_state(self, callback: Callable[[EngineState], None]) -> None:
        """Calls back with the present state at once, and with every later one, from whichever thread sets it."""
        with self._condition:
            self._callbacks.append(callback)
            state = self._state
        callback(state)

    def require_serving(self) -> None:
        """Raises what a client should hear while no job is taken.

        Raises:
            ModelLoading, Draining, EngineDead: as the state is.
        """
        if self._state is EngineState.LOADING:
            raise ModelLoading("The model is loading.", retry_after_s=_LOADING_RETRY_S)
        if self._state is EngineState.DEAD:
            raise EngineDead("The engine failed; the server restarts.", retry_after_s=_LOADING_RETRY_S)
        if self._state is EngineState.DRAINING or self._closed:
            raise Draining("The server is about to stop.")

    # The life of the engine.

    def start(self, prepare: Callable[[], None]) -> None:
        """Starts the thread, which loads and warms up by `prepare` first; the watchdog is off meanwhile.

        SERVING follows, or DEAD if `prepare` raised.
        """
        self._thread = threading.Thread(target=self._live, args=(prepare,), name=self._name, daemon=True)
        self._thread.start()

    async def drain(self, grace_s: float) -> None:
        """Takes no more jobs, lets those at hand finish for `grace_s` seconds, then ends them with Draining."""
        idle = asyncio.Event()
        loop = asyncio.get_running_loop()
        with self._condition:
            if self._state in (EngineState.LOADING, EngineState.SERVING, EngineState.WAKE_FAILED):
                self._set_state(EngineState.DRAINING)
            self._on_idle.append(lambda: loop.call_soon_threadsafe(idle.set))
            self._changed()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(idle.wait(), grace_s)
        with self._condition:
            left = [*self._waiting, *self._running]
            self._waiting.clear()
        for job in left:
            job.events.end(Draining("The server stopped before this request was done."))
            job.token.cancel()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Ends the thread once its present job has stopped.

        Returns:
            Whether it ended in time; a thread that hangs on its device may not.
        """
        with self._condition:
            self._closed = True
            for job in self._waiting:
                job.events.end(Draining("The server stopped."))
            self._waiting.clear()
            for job in self._running:
                job.token.cancel()
            self._changed()
        self._watchdog.close()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # The one crossing.

    async def run(
        self,
        steps: Callable[[CancelToken], Iterator[E]],
        *,
        merge: Callable[[E, E], E | None] | None = None,
        needs_model: bool = True,
    ) -> AsyncGenerator[Queued | E, None]:
        """Runs a job in its turn and yields its events; `Queued` comes first.

        Closing the generator or cancelling its task cancels the job, as does the deadline of the present call.

        Args:
            steps: makes the job; called in the engine's thread.
            merge: joins the last unread event with a new one, or tells by None that it can't; runs in the engine's
                thread and must be quick.
            needs_model: whether the model must be awake for it.

        Raises:
            QueueFull, ModelLoading, Draining, EngineDead: the job was not taken, or was ended.
            WakeFailed: the model could not be woken for it.
            SlowReader: its events were not read.
            HalfreelError: what the job raised.
        """
        job = Job(steps, CancelToken(deadline_var.get()), EventBuffer[E](self._max_event_count, merge), needs_model)
        async with contextlib.aclosing(self._events_of(job)) as events:
            async for event in events:
                yield event

    async def _events_of(self, job: Job[E]) -> AsyncGenerator[Queued | E, None]:
        """Has the job run in its turn, and yields its events; see `run`."""
        position = self._submit(job)
        try:
            yield Queued(position)
            while (event := await job.events.get()) is not None:
                yield event
        finally:
            job.token.cancel()
            with self._condition:
                if job in self._waiting:
                    self._waiting.remove(job)
                    self._changed()

    def _submit(self, job: Job[E]) -> int:
        with self._condition:
            self.require_serving()
            position = len(self._waiting)
            if position >= self._max_waiting_count and (self._running or position > 0):
                raise QueueFull(
                    f"{position} requests wait already; at most {self._max_waiting_count} may.",
                    metadata={
                        "waiting_request_count": str(position),
                        "max_waiting_request_count": str(self._max_waiting_count),
                    },
                    retry_after_s=self._retry_after_s(),
                )
            self._waiting.append(job)
            self._changed()
            return position

    def _retry_after_s(self) -> float:
        """When a place in the queue should be free: when the running job is done."""
        left = self._mean_job_s - (time.monotonic() - self._started_at)
        return min(max(left, _MIN_RETRY_S), _MAX_RETRY_S)

    # The engine's thread.

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
            job.events.end(EngineDead("The engine failed; the server restarts.", retry_after_s=_LOADING_RETRY_S))

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
