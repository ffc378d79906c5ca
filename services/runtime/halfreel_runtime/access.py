"""Lets a call in or refuses it, before any of its request is read: every method of every service, but for health.

It does not know what a method does; `scopes` says what each needs.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE

from halfreel_runtime.boundary import Handler, abort, request_id_of
from halfreel_runtime.caller import ANYBODY, Caller, caller_var
from halfreel_runtime.errors import HalfreelError
from halfreel_runtime.logs import request_id_var
from halfreel_runtime.metrics import CallMetrics
from halfreel_runtime.scopes import METHOD_SCOPES
from halfreel_runtime.tokens import TokenFile, check_scope

_logger = logging.getLogger(__name__)

AUTHORIZATION_KEY = "authorization"


class Access(grpc.aio.ServerInterceptor):
    """The first that a call meets.

    Args:
        tokens: who may call; None lets anybody.
        metrics: counts the refused calls.
    """

    def __init__(self, tokens: TokenFile | None, metrics: CallMetrics) -> None:
        self._tokens = tokens
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler, or one that refuses."""
        method = handler_call_details.method
        if self._tokens is None:
            caller_var.set(ANYBODY)
        elif not method.startswith(f"/{HEALTH_SERVICE}/"):
            try:
                caller_var.set(self._caller(self._tokens, method, handler_call_details))
            except HalfreelError as error:
                return self._refusal(method, error)
        return await continuation(handler_call_details)

    def _caller(self, tokens: TokenFile, method: str, details: grpc.HandlerCallDetails) -> Caller:
        metadata = details.invocation_metadata or ()
        token = tokens.authenticate([value for key, value in metadata if key == AUTHORIZATION_KEY])
        check_scope(token, METHOD_SCOPES.get(method))
        return Caller(token.name, token.scopes)

    def _refusal(self, method: str, error: HalfreelError) -> Handler:
        async def refuse(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            request_id = request_id_of(context)
            request_id_var.set(request_id)
            self._metrics.refused(method, error.code, error.reason)
            _logger.info("call_refused", extra={"reason": error.reason, "peer": context.peer()})
            await abort(context, error, request_id)
            yield b""  # never reached: it makes this a stream, as gRPC wants one

        # A stream of requests, whatever the method is: such a handler is run before any request is taken.
        return grpc.stream_stream_rpc_method_handler(refuse)
