"""Passes on, with each call to another server, which trace it belongs to and which request it is part of.

It does not know what is called.
"""

from __future__ import annotations

from typing import Any

import grpc

from halfreel_runtime.errors import REQUEST_ID_KEY
from halfreel_runtime.logs import request_id_var
from halfreel_runtime.tracing import TRACEPARENT_KEY, TRACESTATE_KEY, trace_var


class PropagationInterceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """For a channel for threads."""

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with what it belongs to."""
        return continuation(_told(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with what it belongs to."""
        return continuation(_told(client_call_details), request)


class AioPropagationInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """For an asyncio channel's calls that have one answer."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with what it belongs to."""
        return await continuation(_told(client_call_details), request)


def _told(details: Any) -> Any:
    """The details of a call, which are a named tuple in both kinds of channel, with ours among its metadata."""
    metadata = list(details.metadata or ())
    if (context := trace_var.get()) is not None:
        metadata.append((TRACEPARENT_KEY, context.traceparent))
        if context.state:
            metadata.append((TRACESTATE_KEY, context.state))
    if request_id := request_id_var.get():
        metadata.append((REQUEST_ID_KEY, request_id))
    return details._replace(metadata=grpc.aio.Metadata(*metadata)) if metadata else details
