"""What a step does about a call that failed: wait for the server, ask again a few times, or give the film up.

| what happened | what is done |
|---|---|
| the server is down, loading or draining | wait as long as it takes, and say so |
| it does not take the gateway's token | wait likewise: a new token is read without a restart |
| it is lost while at work on this, again and again | give up after MAX_LOST_COUNT times |
| its model can't be woken | wait likewise, as long as it says between two tries |
| its queue is full | come back when it says |
| it is silent for too long, fails inside, or sends what can't be right | ask again, MAX_TRY_COUNT times in all |
| it refuses the request | give up |

It does not know what is asked of the server.
"""

from __future__ import annotations

import random
from typing import Any

import grpc

from halfreel_gateway.announcer import Announcer
from halfreel_gateway.failures import FilmFailedError
from halfreel_gateway.running import StepRun
from halfreel_runtime.errors import DETAILS_KEY, RemoteError, error_from_status

MAX_TRY_COUNT = 3
# A scene that ends its server every time must end too; a server that is restarted ten times while a film is made
# (a test that kills on purpose does so) must not end it.
MAX_LOST_COUNT = 20
# Well within the 5 s in which a film goes on once its server serves; a call to a server that is down costs next to
# nothing, because the channel itself waits before it connects again.
_ABSENT_WAIT_S = 0.25
_BUSY_WAIT_S = 1.0
_BUSY_JITTER = 0.25

_ABSENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
_LEAVING = {"DRAINING", "MODEL_LOADING", "ENGINE_DEAD"}
_NOT_SIGNED_IN = {"TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED", "SCOPE_MISSING"}
_PASSING = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
# The same request with the same seed would end the same way.
_SURE_AGAIN = {"NAN_DETECTED"}
# SLOW_READER: we were too slow, once. RESOURCE_EXHAUSTED: gRPC itself refused, because of too many calls.
_PASSING_EXHAUSTION = {"SLOW_READER", grpc.StatusCode.RESOURCE_EXHAUSTED.name}


class Patience:
    """The failures of one step, counted.

    Args:
        run: the step.
        announcer: told when the step waits and when it goes on.
        server: how people call the server: "language model" or "video".
    """

    def __init__(self, run: StepRun, announcer: Announcer, server: str) -> None:
        self._run = run
        self._announcer = announcer
        self._server = server
        self._lost_count = 0
        self._try_count = 0

    def heard(self) -> None:
        """The server is at work on this."""
        if self._run.waiting_reason:
            self._announcer.waits(self._run, "")

    def call_failed(self, error: grpc.RpcError, *, began: bool) -> None:
        """Returns when the call may be tried again.

        Args:
            error: of the call.
            began: whether the server was at work on it.

        Raises:
            FilmFailedError: there is no use in trying again.
        """
        self._run.check()
        remote = error_from_status(error)
        if remote.reason == "WAKE_FAILED":
            seconds = remote.retry_after_s or _BUSY_WAIT_S
            self._wait(f"the {self._server} model can't be woken; the film goes on when it can", seconds)
        elif remote.code in _ABSENT:
            if began and remote.reason not in _LEAVING:
                self._lost()
            self._wait(f"no {self._server} server answers; the film goes on when one does", _ABSENT_WAIT_S)
        elif remote.reason == "QUEUE_FULL":
            seconds = remote.retry_after_s or _BUSY_WAIT_S
            self._wait(f"all {self._server} servers are busy", seconds * (1 + _BUSY_JITTER * random.random()))
        elif remote.reason in _NOT_SIGNED_IN:
            self._wait(f"the {self._server} server does not take the gateway's token; it needs another", _BUSY_WAIT_S)
        elif self._may_pass(remote):
            self.try_failed(self._failure(remote, error))
        else:
            raise self._failure(remote, error)

    def stalled(self) -> None:
        """The server sent nothing for too long: returns when it may be asked again.

        Raises:
            FilmFailedError: it stalled too often.
        """
        self.try_failed(
            FilmFailedError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "SERVER_STALLED",
                f"The {self._server} server sent nothing for too long, {MAX_TRY_COUNT} times;"
                " see its log, then make the film again.",
            )
        )

    def try_failed(self, failure: FilmFailedError) -> None:
        """Something that may pass went wrong: returns when it may be tried again.

        Raises:
            FilmFailedError: `failure`, when it went wrong too often.
        """
        self._try_count += 1
        if self._try_count >= MAX_TRY_COUNT:
            raise failure
        self._run.sleep(_ABSENT_WAIT_S)

    def _lost(self) -> None:
        self._lost_count += 1
        if self._lost_count >= MAX_LOST_COUNT:
            raise FilmFailedError(
                grpc.StatusCode.UNAVAILABLE,
                "SERVER_LOST",
                f"The {self._server} server ended {self._lost_count} times while it worked on this; see its log.",
            )

    def _wait(self, reason: str, seconds: float) -> None:
        self._announcer.waits(self._run, reason)
        self._run.sleep(seconds)

    def _may_pass(self, remote: RemoteError) -> bool:
        if remote.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return remote.reason in _PASSING_EXHAUSTION
        return remote.code in _PASSING and remote.reason not in _SURE_AGAIN

    def _failure(self, remote: RemoteError, error: grpc.RpcError) -> FilmFailedError:
        # A status without our details was made by gRPC or a proxy, and may tell of hosts.
        trailers: Any = error.trailing_metadata() or ()
        ours = any(key == DETAILS_KEY for key, _ in trailers)
        message = remote.message if ours else f"The {self._server} server failed with {remote.reason}; see its log."
        return FilmFailedError(remote.code, remote.reason, message, remote.metadata)
