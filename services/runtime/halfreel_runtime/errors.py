"""The one tree of errors that a servicer or an engine may raise, and its translation to a gRPC status and back.

    HalfreelError
    ├── InvalidArgument            INVALID_ARGUMENT     the request itself is wrong; fix it
    ├── Unauthenticated            UNAUTHENTICATED      no token, or not a good one
    ├── PermissionDenied           PERMISSION_DENIED    the token does not allow it
    ├── NotFound                   NOT_FOUND
    ├── AlreadyExists              ALREADY_EXISTS
    ├── FailedPrecondition         FAILED_PRECONDITION  the state of things forbids it
    ├── ResourceExhausted          RESOURCE_EXHAUSTED
    │   ├── QueueFull              come back after retry_after_s
    │   ├── PlanRefused            it would not fit in memory, and was not begun; `plan` has it
    │   ├── OutOfMemory
    │   └── SlowReader             events were not read fast enough
    ├── Unavailable                UNAVAILABLE          nothing was done; try again
    │   ├── ModelLoading
    │   ├── WakeFailed             the model sleeps and could not be woken
    │   ├── Draining
    │   └── EngineDead
    ├── DeadlineExceeded           DEADLINE_EXCEEDED
    ├── Cancelled                  CANCELLED
    ├── DataLoss                   DATA_LOSS
    └── Internal                   INTERNAL
        └── FatalError             the engine cannot go on: its process ends

It does not know who raises them, nor the gRPC server that sends them.
"""

# ruff: noqa: N818 - the classes are named as gRPC names its status codes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "halfreel"
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# A status travels in HTTP/2 trailers, of which peers take 8 KiB in all: its details in base64, and its text once more
# with up to three characters a byte. All in bytes of UTF-8.
MAX_MESSAGE_BYTES = 400
MAX_DESCRIPTION_BYTES = 160
MAX_NAME_BYTES = 80
MAX_VIOLATION_COUNT = 8
MAX_METADATA_COUNT = 8


@dataclass(frozen=True)
class Violation:
    """One field of a request that is wrong, and why."""

    field: str
    description: str


class HalfreelError(Exception):
    """A failure of one request, told to its client as a gRPC status.

    Args:
        message: one sentence for the client; names field, value and limit, never a path, host or traceback.
        reason: UPPER_SNAKE_CASE, stable; the class's own when left out.
        metadata: values a program can act on, units in the keys.
        violations: the wrong fields, for BadRequest.
        retry_after_s: when to come back; sent as RetryInfo and as the channel's pushback.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason if reason is not None else self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s


class InvalidArgument(HalfreelError):
    """The request itself is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_FIELD"


class Unauthenticated(HalfreelError):
    """It is not known who asks."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(HalfreelError):
    """It is known who asks, and they may not."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class NotFound(HalfreelError):
    """What was asked for is not there, or not for this client."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(HalfreelError):
    """What was to be made is there already, and differs."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(HalfreelError):
    """The state of the server or of the resource forbids it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class ResourceExhausted(HalfreelError):
    """There is not enough of something."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class QueueFull(ResourceExhausted):
    """As many requests wait already as may."""

    default_reason = "QUEUE_FULL"


class OutOfMemory(ResourceExhausted):
    """The device had too little memory for this request; the server is as healthy as before."""

    default_reason = "OUT_OF_MEMORY"


class SlowReader(ResourceExhausted):
    """The client left more events unread than are kept for it."""

    default_reason = "SLOW_READER"


class Unavailable(HalfreelError):
    """The server cannot serve now; nothing was done."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class ModelLoading(Unavailable):
    """The model is not loaded yet."""

    default_reason = "MODEL_LOADING"


class WakeFailed(Unavailable):
    """The model sleeps, and could not come back to its device; it may at the next try."""

    default_reason = "WAKE_FAILED"


class Draining(Unavailable):
    """The server is about to stop."""

    default_reason = "DRAINING"


class EngineDead(Unavailable):
    """The engine failed, and its process is about to end and be restarted."""

    default_reason = "ENGINE_DEAD"


class DeadlineExceeded(HalfreelError):
    """The client's deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(HalfreelError):
    """The client cancelled, or is gone."""

    code = grpc.StatusCode.CANCELLED
    default_reason = "CANCELLED"


class DataLoss(HalfreelError):
    """Stored or received data are broken."""

    code = grpc.StatusCode.DATA_LOSS
    default_reason = "DATA_LOSS"


class Internal(HalfreelError):
    """A bug of ours."""

    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


class FatalError(Internal):
    """The engine cannot go on after this: its server stops serving and its process ends."""

    default_reason = "ENGINE_FAILED"


@dataclass(frozen=True)
class RemoteError:
    """What the status of a failed call says, for a caller."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str]
    retry_after_s: float | None
    violations: tuple[Violation, ...] = ()


def shortened(text: str, limit_bytes: int) -> str:
    """The text, or as many whole characters of it as fit into so many bytes of UTF-8 with an ellipsis."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return text
    return encoded[: limit_bytes - len("…".encode())].decode("utf-8", "ignore") + "…"


def as_halfreel_error(error: BaseException, request_id: str) -> HalfreelError:
    """The error itself where it is one of ours; otherwise an Internal that tells nothing but the request id."""
    if isinstance(error, HalfreelError):
        return error
    return Internal(
        f"Internal error; the server's log has it under request id {request_id}.",
        metadata={"request_id": request_id},
    )


def status_of(error: BaseException, request_id: str) -> status_pb2.Status:
    """The status of an error: exactly one ErrorInfo, then BadRequest and RetryInfo where they apply.

    An error that is not ours becomes INTERNAL with a fixed text and the request id.
    """
    ours = as_halfreel_error(error, request_id)
    metadata = dict(list(ours.metadata.items())[:MAX_METADATA_COUNT])
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=ours.reason,
            domain=DOMAIN,
            metadata={key: shortened(value, MAX_NAME_BYTES) for key, value in metadata.items()},
        )
    ]
    if ours.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=shortened(violation.field, MAX_NAME_BYTES),
                        description=shortened(violation.description, MAX_DESCRIPTION_BYTES),
                    )
                    for violation in ours.violations[:MAX_VIOLATION_COUNT]
                ]
            )
        )
    if ours.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(ours.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=ours.code.value[0], message=shortened(ours.message, MAX_MESSAGE_BYTES))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def error_from_status(error: grpc.RpcError) -> RemoteError:
    """What a failed call says of itself; also for statuses made by gRPC, which carry no details.

    Args:
        error: what a stub of grpc or grpc.aio raised.

    Returns:
        The code, and of our details the reason (the code's name where there is none), metadata and retry time.
    """
    code: grpc.StatusCode = error.code()
    reason, metadata, retry_after_s = code.name, {}, None
    violations: list[Violation] = []
    trailers: Any = error.trailing_metadata() or ()
    status = status_pb2.Status()
    for key, value in trailers:
        if key == DETAILS_KEY:
            status.ParseFromString(value)
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [Violation(each.field, each.description) for each in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return RemoteError(code, reason, error.details() or "", metadata, retry_after_s, tuple(violations))
