"""Errors as callers see them, from the statuses that servers really send."""

from __future__ import annotations

import grpc
import pytest

import halfreel_client
from halfreel_client.command.exits import ExitCode, exit_code_of
from halfreel_client.errors import HalfreelError, Unavailable, Unreachable, error_from
from halfreel_client.patience import Patience
from halfreel_runtime import errors as server


class Call(grpc.RpcError):
    """A failed call as grpc hands it out."""

    def __init__(self, code: grpc.StatusCode, text: str, trailers: list[tuple[str, bytes]]) -> None:
        self._code, self._text, self._trailers = code, text, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> list[tuple[str, bytes]]:
        return self._trailers


def told(error: BaseException) -> HalfreelError:
    status = server.status_of(error, "r1")
    code = server.as_halfreel_error(error, "r1").code
    trailers = [("other", b"x"), ("grpc-status-details-bin", status.SerializeToString())]
    return error_from(Call(code, status.message, trailers), "127.0.0.1:1")


def kinds(base: type) -> list[type]:
    return [base, *(kind for child in base.__subclasses__() for kind in kinds(child))]


def test_every_error_of_a_server_has_its_kind_here() -> None:
    for kind in kinds(server.HalfreelError)[1:]:
        error = told(kind("says what to do"))
        assert type(error) is not HalfreelError
        assert (error.code, error.reason, error.message) == (kind.code, kind.default_reason, "says what to do")


def test_details() -> None:
    error = told(
        server.QueueFull("full", retry_after_s=2.5, metadata={"waiting_request_count": "16"},
                         violations=[server.Violation("seed", "is -1; it must be at least 0")])
    )  # fmt: skip
    assert (error.retry_after_s, error.metadata) == (2.5, {"waiting_request_count": "16"})
    assert error.violations == (halfreel_client.Violation("seed", "is -1; it must be at least 0"),)
    assert "r1" in told(KeyError("secret")).message
    assert "secret" not in told(KeyError("secret")).message


@pytest.mark.parametrize("details", [b"", b"\xff\xff\xff"], ids=["empty", "garbage"])
def test_statuses_of_others(details: bytes) -> None:
    trailers = [("grpc-status-details-bin", details)] if details else []
    gone = error_from(Call(grpc.StatusCode.UNAVAILABLE, "Connection refused", trailers), "10.0.0.1:7600")
    assert type(gone) is Unreachable
    assert "10.0.0.1:7600" in gone.message
    late = error_from(Call(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", trailers), "a")
    assert type(late) is halfreel_client.DeadlineExceeded
    odd = error_from(Call(grpc.StatusCode.UNIMPLEMENTED, "", trailers), "a")
    assert (odd.code, odd.message) == (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")


def test_exit_codes() -> None:
    codes = {kind.__name__: exit_code_of(kind("x")) for kind in kinds(HalfreelError)}
    assert codes == {
        "HalfreelError": ExitCode.FAILED,
        "InvalidArgument": ExitCode.USAGE,
        "Unauthenticated": ExitCode.FAILED,
        "PermissionDenied": ExitCode.FAILED,
        "NotFound": ExitCode.NOT_FOUND,
        "AlreadyExists": ExitCode.USAGE,
        "FailedPrecondition": ExitCode.USAGE,
        "ResourceExhausted": ExitCode.EXHAUSTED,
        "Unavailable": ExitCode.UNREACHABLE,
        "Unreachable": ExitCode.UNREACHABLE,
        "DeadlineExceeded": ExitCode.UNREACHABLE,
        "Cancelled": ExitCode.CANCELLED,
        "DataLoss": ExitCode.FAILED,
        "Internal": ExitCode.FAILED,
    }


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("halfreel_client.patience.time.monotonic", lambda: now[0])
    monkeypatch.setattr("halfreel_client.patience.random.uniform", lambda low, high: 1.0)
    patience, error = Patience(10.0), Unavailable("loading")
    delays = []
    with pytest.raises(Unavailable):
        while True:
            delays.append(patience.delay_s(error))
            now[0] += delays[-1]
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0]
    patience.renew()
    assert patience.delay_s(error) == 0.25
    assert patience.delay_s(Unavailable("draining", retry_after_s=3.0)) == 3.0
    slow = halfreel_client.ResourceExhausted("unread", reason="SLOW_READER")
    assert patience.delay_s(slow) > 0
    for final in (halfreel_client.ResourceExhausted("full", reason="QUEUE_FULL"), halfreel_client.NotFound("none")):
        with pytest.raises(type(final)):
            patience.delay_s(final)
