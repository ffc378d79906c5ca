"""The boundary between gRPC and the servicers: every call of ours passes here, and here alone.

Parses the request itself (gRPC's own answer to bytes that do not parse shows the exception), names the call by a
request id, passes the deadline on, translates errors, counts and logs. Health and reflection pass through untouched.
It does not know what a method does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from halfreel_runtime.cancel import deadline_var
from halfreel_runtime.errors import (
    DETAILS_KEY,
    PUSHBACK_KEY,
    REQUEST_ID_KEY,
    Draining,
    InvalidArgument,
    QueueFull,
    as_halfreel_error,
    status_of,
)
from halfreel_runtime.logs import request_id_var
from halfreel_runtime.metrics import CallMetrics
from halfreel_runtime.tracing import TRACEPARENT_KEY, TRACESTATE_KEY, joined, note, span

_logger = logging.getLogger(__name__)
MAX_CALL_COUNT = 512
# Of the requests of all running calls together, each of up to max_receive_bytes: a server that took any number of large
# ones would run out of memory before its queue is full. Small requests are always taken.
MAX_HELD_BYTES = 256 * 2**20
_SMALL_BYTES = 64 * 2**10
# Asked by everybody who watches, several times a second: not worth a line each.
_QUIET_METHODS = {"MemoryStatus"}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

Handler = Any  # grpc.RpcMethodHandler, whose type stubs know none of its attributes
Context = Any  # grpc.aio.ServicerContext of whichever messages


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps the methods of our services.

    Args:
        metrics: counts the calls.
    """

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics
        self._services: set[str] = set()
        self._watch_methods: set[str] = set()
        self._wrapped: dict[str, Handler] = {}
        self._calls: dict[asyncio.Task[Any], str] = {}
        self._ended: set[asyncio.Task[Any]] = set()
        self._held_bytes = 0

    def add_service(self, full_name: str, watch_methods: Collection[str]) -> None:
        """Takes charge of a service; streams of `watch_methods` never end by themselves."""
        self._services.add(full_name)
        self._watch_methods |= {f"/{full_name}/{method}" for method in watch_methods}

    @property
    def call_count(self) -> int:
        """Calls of our services that run now."""
        return len(self._calls)

    def end_watches(self) -> None:
        """Ends the calls that would never end by themselves with UNAVAILABLE / DRAINING."""
        self._end([task for task, method in self._calls.items() if method in self._watch_methods])

    def end_calls(self) -> None:
        """Ends every call with UNAVAILABLE / DRAINING."""
        self._end(list(self._calls))

    async def calls_done(self) -> None:
        """Returns when no call runs any more."""
        while self._calls:
            await asyncio.wait(list(self._calls))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of a method; gRPC itself answers UNIMPLEMENTED where there is none."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.lstrip("/").split("/")[0] not in self._services:
            return handler
        if method not in self._wrapped:
            self._wrapped[method] = self._wrap(handler, method)
        return self._wrapped[method]

    def _wrap(self, handler: Handler, method: str) -> Handler:
        if handler.request_streaming:
            raise TypeError(f"{method} streams its requests, which the boundary does not parse")
        parse = handler.request_deserializer
        if handler.response_streaming:

            async def stream(raw: bytes, context: Context) -> None:
                # The servicer's generator is closed here and not by the collector: a cancelled call must reach its
                # engine at once.
                async with (
                    self._call(method, context, len(raw)),
                    contextlib.aclosing(handler.unary_stream(_parsed(parse, raw), context)) as responses,
                ):
                    async for response in responses:
                        await context.write(response)

            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)

        async def unary(raw: bytes, context: Context) -> Any:
            async with self._call(method, context, len(raw)):
                return await handler.unary_unary(_parsed(parse, raw), context)

        return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)

    @contextlib.asynccontextmanager
    async def _call(self, method: str, context: Context, request_bytes: int) -> AsyncGenerator[None, None]:
        request_id = request_id_of(context)
        request_id_var.set(request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        metadata = dict(context.invocation_metadata() or ())
        with (
            joined(metadata.get(TRACEPARENT_KEY), metadata.get(TRACESTATE_KEY)),
            span(
                method.lstrip("/"),
                {"rpc.system.name": "grpc", "rpc.method": method.lstrip("/"), "halfreel.request_id": request_id},
                is_call=True,
            ),
        ):
            async with self._measured_call(method, context, request_id, request_bytes):
                yield

    @contextlib.asynccontextmanager
    async def _measured_call(
        self, method: str, context: Context, request_id: str, request_bytes: int
    ) -> AsyncGenerator[None, None]:
        left_s = context.time_remaining()
        deadline = None if left_s is None else time.monotonic() + left_s
        deadline_var.set(deadline)
        task = asyncio.current_task()
        assert task is not None
        # Until the task is done, and with it the reply sent; this block ends before that.
        task.add_done_callback(self._forget)
        self._calls[task] = method
        self._held_bytes += request_bytes
        self._metrics.began(method)
        began = time.monotonic()
        code = grpc.StatusCode.OK
        reason = ""
        try:
            if len(self._calls) > MAX_CALL_COUNT:
                raise QueueFull(f"{MAX_CALL_COUNT} calls run already; no more may.", retry_after_s=1.0)
            if self._held_bytes > MAX_HELD_BYTES and request_bytes > _SMALL_BYTES:
                raise QueueFull(
                    f"The requests of running calls have {self._held_bytes} bytes; they may have {MAX_HELD_BYTES}.",
                    metadata={"held_bytes": str(self._held_bytes), "max_held_bytes": str(MAX_HELD_BYTES)},
                    retry_after_s=1.0,
                )
            yield
        except asyncio.CancelledError:
            if task not in self._ended:
                late = deadline is not None and time.monotonic() >= deadline
                code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                reason = code.name
                raise
            task.uncancel()
            code, reason = grpc.StatusCode.UNAVAILABLE, Draining.default_reason
            await abort(context, Draining("The server is about to stop; call again."), request_id)
        except Exception as error:
            ours = as_halfreel_error(error, request_id)
            code, reason = ours.code, ours.reason
            if code is grpc.StatusCode.INTERNAL:
                _logger.exception("call_failed", extra={"method": method})
            await abort(context, error, request_id)
        finally:
            self._held_bytes -= request_bytes
            self._metrics.ended(method, code, reason, time.monotonic() - began)
            note("rpc.response.status_code", code.name)
            if reason:
                note("halfreel.reason", reason)
            level = logging.DEBUG if method.rpartition("/")[2] in _QUIET_METHODS else logging.INFO
            _logger.log(level, "call", extra={"method": method, "code": code.name, "seconds": _since(began)})

    def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            if task not in self._ended:
                self._ended.add(task)
                task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        del self._calls[task]
        self._ended.discard(task)


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError:
        raise InvalidArgument(
            "The request does not parse as the message that this method takes.", reason="MALFORMED_MESSAGE"
        ) from None


def request_id_of(context: Context) -> str:
    """The client's own id where it is fit for a header and a log line, else a new one."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY)
    return given if isinstance(given, str) and _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


async def abort(context: Context, error: Exception, request_id: str) -> None:
    """Ends the call with the error's status; raises what gRPC wants raised."""
    status = status_of(error, request_id)
    ours = as_halfreel_error(error, request_id)
    trailers: list[tuple[str, str | bytes]] = [
        (REQUEST_ID_KEY, request_id),
        (DETAILS_KEY, status.SerializeToString()),
    ]
    if ours.retry_after_s is not None:
        trailers.append((PUSHBACK_KEY, str(round(ours.retry_after_s * 1000))))
    await context.abort(ours.code, status.message, trailing_metadata=tuple(trailers))


def _since(began: float) -> float:
    return round(time.monotonic() - began, 4)
