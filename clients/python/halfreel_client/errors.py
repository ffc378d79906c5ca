"""What a call can raise, read from the status that a server sends; it knows no service.

HalfreelError
├── InvalidArgument       a value is out of its limits: see `violations`
├── NotFound              there is no such film
├── AlreadyExists         the request id was used for something else
├── FailedPrecondition    not now: the film has not ended, or its video is not ready
├── ResourceExhausted     a queue, a memory or a disk is full: see `retry_after_s`
├── Unavailable           the server is loading, draining or gone; the same call may be made again
│   └── Unreachable       no server answered at all
├── DeadlineExceeded      the call's time was over
├── Cancelled             the call was cancelled
├── DataLoss              bytes that came are not those that were stored
└── Internal              the server failed; its log has the request id
"""

# ruff: noqa: N818 - the classes are named as gRPC names its status codes

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_STATUS_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that was refused, and why."""

    field: str
    description: str


class HalfreelError(Exception):
    """A call that failed.

    Attributes:
        code: the canonical gRPC code.
        reason: a fixed word in capitals such as "QUEUE_FULL"; empty when the server gave none.
        message: for people; says what to do next.
        violations: the refused fields of the request.
        retry_after_s: when to come back, in seconds; None when the server did not say.
        metadata: details with units in the keys, such as needed_bytes.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        code: grpc.StatusCode | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})
        self.code = code or type(self).code


class InvalidArgument(HalfreelError):
    """A value is out of its limits."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class Unauthenticated(HalfreelError):
    """The server does not know who calls."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(HalfreelError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class NotFound(HalfreelError):
    """There is no such thing."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(HalfreelError):
    """The request id was used for something else."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(HalfreelError):
    """Not in this state."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(HalfreelError):
    """A queue, a memory or a disk is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(HalfreelError):
    """The server cannot answer now; the same call may be made again."""

    code = grpc.StatusCode.UNAVAILABLE


class Unreachable(Unavailable):
    """No server answered at all."""


class DeadlineExceeded(HalfreelError):
    """The call's time was over."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(HalfreelError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class DataLoss(HalfreelError):
    """Bytes that came are not those that were stored."""

    code = grpc.StatusCode.DATA_LOSS


class Internal(HalfreelError):
    """The server failed."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[grpc.StatusCode, type[HalfreelError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        DataLoss,
        Internal,
    )
}


def error_from(call: grpc.RpcError, address: str) -> HalfreelError:
    """The error of a failed call, sync or asyncio, to the server at `address`."""
    code, text = call.code(), call.details() or ""
    status = _status_of(call)
    if status is None:
        if code is grpc.StatusCode.UNAVAILABLE:
            # Without details of ours the status was made by the channel: nobody was there, or it went away.
            return Unreachable(f"no answer from {address} ({text})", reason="UNREACHABLE")
        return _BY_CODE.get(code, HalfreelError)(text or code.name, code=code)
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        # Unpack fills the message whose type it is, and says whether it did.
        if not (detail.Unpack(info) or detail.Unpack(bad)):
            has_retry = detail.Unpack(retry) or has_retry
    return _BY_CODE.get(code, HalfreelError)(
        status.message or text,
        reason=info.reason,
        violations=[Violation(item.field, item.description) for item in bad.field_violations],
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if has_retry else None,
        metadata=dict(info.metadata),
        code=code,
    )


def _status_of(call: grpc.RpcError) -> status_pb2.Status | None:
    """The rich status in the trailing metadata; None when there is none that can be read."""
    trailers = cast("Iterable[tuple[str, bytes]]", call.trailing_metadata() or ())
    for key, value in trailers:
        if key == _STATUS_DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


@contextmanager
def raising(address: str) -> Iterator[None]:
    """Turns the errors of calls to `address` into ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_from(error, address) from None
