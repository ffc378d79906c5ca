"""One thread that owns the model; everything else awaits it.

A job is a blocking generator that runs in the engine's thread (`engine_thread`); its events cross to the caller's
asyncio loop through one bounded buffer. Jobs wait in one bounded queue and run one at a time, in order; an engine
that batches (the language model's) is one of these with a queue of its own.

It does not know gRPC, nor what a job computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TypeVar

from halfreel_runtime.cancel import CancelToken, deadline_var
from halfreel_runtime.engine_thread import LOADING_RETRY_S, EngineThread, Observer
from halfreel_runtime.errors import Draining, EngineDead, ModelLoading, QueueFull
from halfreel_runtime.events import EventBuffer
from halfreel_runtime.job import EngineState, Job, Queued

__all__ = ["Engine", "EngineState", "Observer", "Queued"]

E = TypeVar("E")

_MIN_RETRY_S, _MAX_RETRY_S = 0.5, 300.0


class Engine(EngineThread[E]):
    """Runs jobs in a thread of its own, one at a time unless it batches; E is the type of their events."""

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
            raise ModelLoading("The model is loading.", retry_after_s=LOADING_RETRY_S)
        if self._state is EngineState.DEAD:
            raise EngineDead("The engine failed; the server restarts.", retry_after_s=LOADING_RETRY_S)
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
