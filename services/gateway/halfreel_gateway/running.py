"""The steps at work on films in this process, and how each hears that it must end.

A step ends when its film has ended, when the gateway stops, or, for one call alone, when its model server has stalled.
One thread looks after all of them. It does not know what the steps do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from halfreel_gateway import films
from halfreel_gateway.failures import FilmEndedError
from halfreel_gateway.store import FilmPosition

# How soon a cancel made through another gateway is heard.
POLL_S = 0.4

Positions = Callable[[Sequence[str]], dict[str, FilmPosition]]

_logger = logging.getLogger(__name__)


class GatewayStoppingError(BaseException):
    """The gateway stops; its steps are resumed when it starts again.

    Not an Exception, so that the durable workflow does not take it for the step's result: a step left this way counts
    as killed, and is run again.
    """


class StalledError(Exception):
    """The model server sent nothing for as long as it may."""


class Call(Protocol):
    """A running gRPC call."""

    def cancel(self) -> object:
        """Ends the call; its reader hears CANCELLED."""


class StepRun:
    """One step at work on one film. Used by the step's own thread, but for `end` and `look`.

    Args:
        film_id: the film.
        calls_server: whether it needs a model server; one that does not never makes its film wait.
        stall_s: how long a model server may be silent.
    """

    def __init__(self, film_id: str, calls_server: bool, stall_s: float) -> None:
        self.film_id = film_id
        self.calls_server = calls_server
        self.waiting_reason = ""
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._ended_by: BaseException | None = None
        self._stalled = False
        self._call: Call | None = None
        self._heard_s = 0.0
        self._woken = threading.Event()

    @contextmanager
    def calling(self, call: Call) -> Iterator[None]:
        """A call that is cancelled when the film or the gateway ends, or the server stalls.

        Raises:
            FilmEndedError: the film has ended.
            GatewayStoppingError: the gateway stops.
            StalledError: the server sent nothing for too long.
        """
        with self._lock:
            self._call, self._heard_s, self._stalled = call, time.monotonic(), False
        try:
            self.check()
            yield
        except Exception as error:
            # Cancelled by us, the call ends with an error of its own; what we cancelled it for tells more.
            self.check()
            if self._stalled:
                raise StalledError from error
            raise
        finally:
            with self._lock:
                self._call = None
            call.cancel()

    def beat(self) -> None:
        """The server sent something."""
        self._heard_s = time.monotonic()

    def check(self) -> None:
        """Raises what ended this step, if anything did."""
        if self._ended_by is not None:
            raise self._ended_by

    def wait(self, seconds: float) -> None:
        """Sleeps until the time is over or the film changes; raises what ended this step, if anything did."""
        self.check()
        self._woken.wait(seconds)
        self._woken.clear()
        self.check()

    def sleep(self, seconds: float) -> None:
        """Sleeps for the whole time; raises at once what ends this step, if anything does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.wait(left)

    def wake(self) -> None:
        """The film changed."""
        self._woken.set()

    def end(self, why: BaseException) -> None:
        """Ends the step's call and sleep, and all it begins from now on."""
        with self._lock:
            self._ended_by = self._ended_by or why
            call = self._call
        self._woken.set()
        if call is not None:
            call.cancel()

    def look(self, now_s: float) -> None:
        """Ends the call if the server has stalled."""
        with self._lock:
            call = self._call
            if call is None or now_s - self._heard_s <= self._stall_s:
                return
            self._stalled = True
        call.cancel()


class RunningSteps:
    """All steps at work in this process.

    Args:
        stall_s: how long a model server may be silent in a call.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._runs: dict[str, set[StepRun]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, positions: Positions) -> None:
        """Begins to look after the steps.

        Args:
            positions: tells how far films are, from the database.
        """
        self._thread = threading.Thread(target=self._look_after, args=(positions,), name="running-steps", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends all steps, and all that begin from now on, as if the process were killed."""
        self._stopping.set()
        for run in self._all():
            run.end(GatewayStoppingError())
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def step(self, film_id: str, *, calls_server: bool) -> Iterator[StepRun]:
        """A step that works on a film."""
        run = StepRun(film_id, calls_server, self._stall_s)
        with self._lock:
            self._runs.setdefault(film_id, set()).add(run)
        if self._stopping.is_set():
            run.end(GatewayStoppingError())
        try:
            yield run
        finally:
            with self._lock:
                self._runs[film_id].discard(run)
                if not self._runs[film_id]:
                    del self._runs[film_id]

    def film_changed(self, film_id: str, *, ended: bool) -> None:
        """Tells the film's steps that something happened to it."""
        for run in self._of(film_id):
            if ended:
                run.end(FilmEndedError())
            else:
                run.wake()

    def waiting_reason(self, film_id: str) -> str:
        """Why the film waits: the reason of one of its steps when all that call a server wait, else nothing."""
        reasons = [run.waiting_reason for run in self._of(film_id) if run.calls_server]
        return reasons[0] if reasons and all(reasons) else ""

    def _of(self, film_id: str) -> list[StepRun]:
        with self._lock:
            return list(self._runs.get(film_id, ()))

    def _all(self) -> list[StepRun]:
        with self._lock:
            return [run for runs in self._runs.values() for run in runs]

    def _look_after(self, positions: Positions) -> None:
        while not self._stopping.wait(POLL_S):
            now_s = time.monotonic()
            for run in self._all():
                run.look(now_s)
            with self._lock:
                film_ids = list(self._runs)
            if not film_ids:
                continue
            try:
                found = positions(film_ids)
            except Exception:
                _logger.exception("films_at_work_not_found_out")
                continue
            for film_id in film_ids:
                position = found.get(film_id)
                if position is None or films.has_ended(position.state):
                    self.film_changed(film_id, ended=True)
