"""The engine of the language model: requests join the running ones as soon as a slot is free, between any two steps.

To everybody outside it is an `Engine`: the same queue, refusals, cancellation, draining and death. A job of another
kind (clearing memory, sleep) still runs alone, in its turn: what waits behind it waits until it has run.
It does not know gRPC, nor what a batch computes.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass

from halfreel_llm.batch import Batch
from halfreel_llm.reply import Finished, TextDelta, TextRequest
from halfreel_llm.wakes import StepEvents, Wakes
from halfreel_runtime.caller import ANYBODY, caller_var
from halfreel_runtime.cancel import CancelToken, deadline_var
from halfreel_runtime.engine import Engine, Observer, Queued
from halfreel_runtime.errors import Cancelled, EngineDead, FatalError, HalfreelError, QueueFull
from halfreel_runtime.failures import engine_error, release_frames
from halfreel_runtime.gate import Gate
from halfreel_runtime.job import EngineState, Job

Event = TextDelta | Finished
_logger = logging.getLogger(__name__)
_MEAN_WEIGHT = 0.2


def _no_steps(token: CancelToken) -> Iterator[Event]:
    raise AssertionError("a reply is written in a batch")


@dataclass(eq=False)
class ReplyJob(Job[Event]):
    """A request that waits or is written; the batch's way to its reader."""

    request: TextRequest | None = None
    client: str = ""
    deadline: float | None = None
    started_at: float = 0.0
    ended: Callable[[ReplyJob, BaseException | None], None] | None = None

    def put(self, event: TextDelta) -> None:
        """See `Reader`."""
        self.events.put(event)

    def end(self, finished: Finished | None, error: BaseException | None) -> None:
        """See `Reader`."""
        if finished is not None:
            try:
                self.events.put(finished)
            except HalfreelError as unread:
                error = unread
        assert self.ended is not None
        self.ended(self, error)


class BatchEngine(Engine[Event]):
    """An engine that writes as many replies at once as its batch has slots.

    Args:
        name: of the thread, for logs.
        max_waiting_count: requests that may wait while all slots are taken.
        stall_s: a batch without a step for so long is hung.
        observer, gate: as `Engine` has them.
    """

    def __init__(
        self,
        *,
        name: str,
        max_waiting_count: int,
        stall_s: float = 60.0,
        observer: Observer | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(name=name, max_waiting_count=max_waiting_count, stall_s=stall_s, observer=observer, gate=gate)
        self._batch: Batch | None = None
        self._stepped: CancelToken | None = None
        self._wakes = Wakes()

    @property
    def silent_s(self) -> float:
        """For how long the running replies have shown no progress; 0 when none runs."""
        stepped = self._stepped  # they move on together, and only one of them need tell
        return super().silent_s if stepped is None else time.monotonic() - stepped.last_beat

    def use(self, batch: Batch) -> None:
        """Takes the batch; called once, in the engine's thread, before the engine serves."""
        self._batch = batch

    def write(
        self, request: TextRequest, *, merge: Callable[[Event, Event], Event | None]
    ) -> AsyncGenerator[Queued | Event, None]:
        """Has a reply written as soon as a slot is free, and yields its events; `Queued` comes first.

        Closing the generator or cancelling its task cancels the reply, as does the deadline of the present call.

        Args:
            request: What to write.
            merge: As `Engine.run` has it.

        Raises:
            QueueFull, ModelLoading, Draining, EngineDead: the request was not taken, or was ended.
            SlowReader: its events were not read.
            HalfreelError: what writing raised.
        """
        deadline = deadline_var.get()
        job = ReplyJob(
            _no_steps,
            CancelToken(deadline),
            StepEvents[Event](self._max_event_count, merge, self._wakes),
            request=request,
            client=caller_var.get(ANYBODY).name,
            deadline=deadline,
            ended=self._reply_ended,
        )
        return self._events_of(job)

    # The queue.

    def _submit(self, job: Job[Event]) -> int:
        with self._condition:
            self.require_serving()
            free = self._free_count()
            waiting = len(self._waiting)
            if waiting >= self._max_waiting_count + free:
                self._refuse(f"{waiting} requests wait already; at most {self._max_waiting_count} may.", waiting)
            if isinstance(job, ReplyJob):
                self._hold_share(job.client)
                self._hold_deadline(job.deadline, waiting - free)
            self._waiting.append(job)
            self._changed()
            return max(0, waiting - free)

    def _hold_share(self, client: str) -> None:
        """Refuses a client that would take more than half of the places to wait from the others."""
        theirs = sum(1 for each in self._waiting if isinstance(each, ReplyJob) and each.client == client)
        share = max(1, self._max_waiting_count // 2)
        others = any(isinstance(each, ReplyJob) and each.client != client for each in [*self._waiting, *self._running])
        if others and theirs >= share + self._free_count():
            self._refuse(f"{theirs} requests of this client wait already; at most {share} may, beside others.", theirs)

    def _hold_deadline(self, deadline: float | None, before: int) -> None:
        """Refuses a request that would begin after its client has stopped waiting."""
        if deadline is None or before < 0:
            return
        wait_s = self._mean_job_s * (1 + before // max(1, len(self._running)))
        if self._running and time.monotonic() + wait_s > deadline:
            self._refuse(f"{before} requests wait already; this one would begin after its deadline.", before)

    def _refuse(self, message: str, waiting: int) -> None:
        raise QueueFull(
            message,
            metadata={
                "waiting_request_count": str(waiting),
                "max_waiting_request_count": str(self._max_waiting_count),
            },
            retry_after_s=self._retry_after_s(),
        )

    def _free_count(self) -> int:
        slots = self._batch.slot_count if self._batch is not None else 1
        return max(0, slots - len(self._running))

    # The engine's thread.

    def _serve_next(self) -> bool:
        """Runs the next job alone, or replies until none is left."""
        with self._condition:
            while not self._waiting:
                if self._closed or self._state is EngineState.DEAD:
                    return False
                self._wait_for_job()
            job = self._waiting[0]
            if not isinstance(job, ReplyJob):
                self._waiting.popleft()
                self._running.append(job)
                self._started_at = time.monotonic()
        if isinstance(job, ReplyJob):
            if (refused := self._enter_gate()) is None:
                self._write_replies()
            else:
                self._refuse_waiting(refused)
            self._leave_gate()
        else:
            self._run_alone(job)
        return True

    def _refuse_waiting(self, error: BaseException) -> None:
        """Tells all who wait that the model could not be woken; each may ask again.

        Where it was given up because nobody wanted it, that is told to nobody who has come since.
        """
        given_up = isinstance(error, Cancelled)
        with self._condition:
            replies = [job for job in self._waiting if isinstance(job, ReplyJob)]
            refused = [job for job in replies if job.token.cancelled or not given_up]
            for job in refused:
                self._waiting.remove(job)
            self._changed()
        for job in refused:
            job.events.end(error)

    def _write_replies(self) -> None:
        """Steps the batch until nobody waits for it; the watchdog wants a sign of progress of every step."""
        batch = self._batch
        assert batch is not None
        token = self._stepped = CancelToken()
        self._watchdog.begin(token)
        try:
            with batch.session():
                while self._admit(batch):
                    with self._wakes:
                        batch.step()
                    token.beat()
        except BaseException as raised:
            release_frames(raised)
            error = engine_error(raised)
            if not isinstance(error, FatalError):  # a bug of ours outside any reply: whoever is left hears of it
                _logger.error("batch_failed", extra={"reason": str(error)}, exc_info=raised)
                for job in list(self._running):
                    self._reply_ended(job, error)
                return
            _logger.error("job_failed", extra={"reason": str(error)}, exc_info=raised)
            for job in list(self._running):
                self._reply_ended(job, EngineDead("The engine failed during this request."))
            self._die()
        finally:
            self._stepped = None
            self._watchdog.end()

    def _admit(self, batch: Batch) -> bool:
        """Gives free slots to whoever waits; returns whether there is anything to write."""
        admitted: list[ReplyJob] = []
        # Where it is another server's turn on the device, the running replies are written to their end. The gate reads
        # files to know: the event loop, which takes the condition too, must not wait for that.
        yielding = self._gate.yielding()
        with self._condition:
            free = 0 if yielding else batch.slot_count - len(self._running)
            while len(admitted) < free and (job := self._next_reply()) is not None:
                self._running.append(job)
                admitted.append(job)
        for job in admitted:
            job.started_at = self._started_at = time.monotonic()
            self._tell_begun(job)
            if job.token.cancelled:
                self._reply_ended(job, None)  # nobody waits for it any more; a deadline is told by gRPC itself
                continue
            assert job.request is not None
            batch.admit(job.request, job)
        return bool(self._running) and self._state is not EngineState.DEAD

    def _next_reply(self) -> ReplyJob | None:
        """Takes the next reply off the queue: the first of the client with the fewest running ones.

        Nothing overtakes a job that runs alone. Call with the condition held.
        """
        if not self._waiting:  # as at most steps
            return None
        running = Counter(job.client for job in self._running if isinstance(job, ReplyJob))
        best: ReplyJob | None = None
        for job in self._waiting:
            if not isinstance(job, ReplyJob):
                break
            if best is None or running[job.client] < running[best.client]:
                best = job
        if best is not None:
            self._waiting.remove(best)
            self._changed()
        return best

    def _reply_ended(self, job: Job[Event], error: BaseException | None) -> None:
        """A reply has left its slot."""
        known = None if error is None else engine_error(error)
        if known is not None and known is not error:
            job.context.run(_logger.error, "job_failed", extra={"reason": str(known)}, exc_info=error)
        self._tell_ended(job)
        with self._condition:
            if job in self._running:
                self._running.remove(job)
            if error is None and isinstance(job, ReplyJob) and not job.token.cancelled:
                seconds = time.monotonic() - job.started_at
                self._mean_job_s += (_MEAN_WEIGHT if self._mean_job_s else 1.0) * (seconds - self._mean_job_s)
            self._changed()
        job.events.end(known)
