"""Keeps servers up: starts them in order, starts again what dies, stops them all; it knows no server in particular."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from halfreel_client.supervisor.child import Child, Health, ServerSpec
from halfreel_client.supervisor.server_log import ServerLog

# A server ends with this code when its settings are wrong: starting it again would not help.
CONFIGURATION_ERROR = 2

_FIRST_DELAY_S = 0.5
_LAST_DELAY_S = 30.0
# After so long in service a death is a new story, and the delay begins anew.
_STEADY_S = 60.0
_TICK_S = 0.1
_HEALTH_INTERVAL_S = 1.0


class ServerState(StrEnum):
    """Where a server is."""

    WAITING = "waiting"
    STARTING = "starting"
    LOADING = "loading"
    SERVING = "serving"
    RESTARTING = "restarting"
    REFUSED = "refused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server at one moment. `failure_count` is of the deaths in a row, `problem` says what the last one was."""

    name: str
    state: ServerState
    address: str
    pid: int | None
    failure_count: int
    problem: str
    log_path: Path


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth telling a person about a server."""

    name: str
    text: str


class _Server:
    """One server's child, and what is known of it. Used by the supervisor's thread alone."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.state = ServerState.WAITING
        self.failure_count = 0
        self.problem = ""
        self.noted = ""
        self.start_at = 0.0
        self.check_at = 0.0
        self.serving_since = 0.0

    def status(self) -> ServerStatus:
        child = self.child
        return ServerStatus(
            child.spec.name, self.state, child.address, child.pid, self.failure_count, self.problem, child.log.path
        )


class Supervisor:
    """Runs servers until it is left; usable as a context, out of which no process survives.

    All processes are children of one thread that lives until they have ended: the kernel ends them with it.

    Args:
        specs: the servers, in the order of starting; those that need others are stopped before them.
        run_folder: for port files.
        log_folder: for one log file a server.
        grace_s: how long a server may drain when it is stopped, in seconds.

    Attributes:
        notes: what is worth telling, to be taken out by the caller.
        error: why the supervisor itself gave up and stopped all servers; None unless it did.
    """

    def __init__(
        self, specs: Sequence[ServerSpec], *, run_folder: Path, log_folder: Path, grace_s: float = 40.0
    ) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        self.notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._grace_s = grace_s
        self._servers = [_Server(Child(spec, run_folder, ServerLog(log_folder / f"{spec.name}.log"))) for spec in specs]
        self._stop = threading.Event()
        self._kill = threading.Event()
        self._statuses = tuple(server.status() for server in self._servers)
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="halfreel-supervisor")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        try:
            self._thread.join()
        except BaseException:  # a second Ctrl-C while servers drain
            self.kill()
            self._thread.join()
            raise

    @property
    def statuses(self) -> tuple[ServerStatus, ...]:
        """Every server as it was a moment ago."""
        return self._statuses

    @property
    def serving(self) -> bool:
        """Whether all servers serve."""
        return all(status.state is ServerState.SERVING for status in self._statuses)

    @property
    def ended(self) -> bool:
        """Whether all servers have ended for good."""
        return not self._thread.is_alive()

    @property
    def refused(self) -> ServerStatus | None:
        """The server that ended because its settings are wrong, if there is one; the others stop then."""
        return next((status for status in self._statuses if status.state is ServerState.REFUSED), None)

    def stop(self) -> None:
        """Begins to stop all servers; returns at once."""
        self._stop.set()

    def kill(self) -> None:
        """Ends all servers without waiting for them to drain; returns at once."""
        self._kill.set()
        self._stop.set()

    def kill_now(self) -> None:
        """Ends all servers' processes here and now, for a caller that is about to leave without this object."""
        for status in self._statuses:
            if status.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(status.pid, signal.SIGKILL)

    def _run(self) -> None:
        try:
            while not self._stop.wait(_TICK_S):
                for server in self._servers:
                    self._tend(server)
                self._statuses = tuple(server.status() for server in self._servers)
                if self.refused is not None:
                    break
        except OSError as error:  # no process can be started, or no log written: the machine is full
            self.error = error
        finally:
            self._end_all()

    def _tend(self, server: _Server) -> None:
        child, now = server.child, time.monotonic()
        if server.state in (ServerState.WAITING, ServerState.RESTARTING):
            addresses = {each.child.spec.name: each.child.address for each in self._servers if each.child.address}
            if now >= server.start_at and all(name in addresses for name in child.spec.needs):
                child.start(addresses)
                server.state = ServerState.STARTING
            return
        if (code := child.exit_code()) is not None:
            self._died(server, code, now)
            return
        self._note(server, child.log.new_errors())
        if server.state is ServerState.STARTING:
            if child.listens():
                server.state, server.check_at = ServerState.LOADING, 0.0
        elif now >= server.check_at:
            self._check(server, now)

    def _check(self, server: _Server, now: float) -> None:
        serving = server.child.health() is Health.SERVING
        if serving and server.state is not ServerState.SERVING:
            server.state, server.serving_since = ServerState.SERVING, now
        elif not serving:
            server.state = ServerState.LOADING
        if serving and now - server.serving_since > _STEADY_S:
            server.failure_count, server.problem = 0, ""
        server.check_at = now + (_HEALTH_INTERVAL_S if serving else _TICK_S)

    def _died(self, server: _Server, code: int, now: float) -> None:
        errors = server.child.log.new_errors()
        said = server.child.log.last_text
        server.problem = _exit_text(code) + (f": {said}" if said else "")
        if code == CONFIGURATION_ERROR:
            server.state, server.problem = ServerState.REFUSED, said or server.problem
            return
        if said:
            errors = [*(text for text in errors if text != said), said]
        self._note(server, errors)
        if server.state is ServerState.SERVING and now - server.serving_since > _STEADY_S:
            server.failure_count = 0
        delay_s = min(_FIRST_DELAY_S * 2**server.failure_count, _LAST_DELAY_S)
        server.failure_count += 1
        server.state, server.start_at = ServerState.RESTARTING, now + delay_s
        self._note(server, [f"{_exit_text(code)}; starts again in {delay_s:g} s"])

    def _note(self, server: _Server, texts: list[str]) -> None:
        """Tells each text, but for the one told last: what a server said at its end was mostly heard before."""
        for text in texts:
            if text != server.noted:
                self.notes.put(Note(server.child.spec.name, text))
                server.noted = text

    def _end_all(self) -> None:
        """Ends first those that call others, so that no call of theirs is lost, and then the others all at once."""
        left = list(self._servers)
        while left:
            called = {name for server in left for name in server.child.spec.needs}
            now = [server for server in left if server.child.spec.name not in called] or left
            for server in now:
                server.child.terminate()
            deadline = time.monotonic() + self._grace_s
            while running := [server for server in now if not self._has_ended(server)]:
                if self._kill.is_set() or time.monotonic() > deadline:
                    for server in running:
                        server.child.kill()
                time.sleep(_TICK_S / 2)
            left = [server for server in left if server not in now]

    def _has_ended(self, server: _Server) -> bool:
        if server.child.pid is not None and server.child.exit_code() is None:
            return False
        server.child.close()
        if server.state is not ServerState.REFUSED:
            server.state = ServerState.STOPPED
        self._statuses = tuple(each.status() for each in self._servers)
        return True


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
