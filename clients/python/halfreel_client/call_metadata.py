"""Puts metadata on every call of a channel, asked for anew each time. It does not know what the metadata says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc

Source = Callable[[], Sequence[tuple[str, str]]]


class MetadataInterceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """For a blocking channel."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with the metadata."""
        return continuation(_told(client_call_details, self._sources), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with the metadata."""
        return continuation(_told(client_call_details, self._sources), request)


class AioUnaryMetadataInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """For an asyncio channel's calls that have one answer."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with the metadata."""
        return await continuation(_told(client_call_details, self._sources), request)


class AioStreamMetadataInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    """For an asyncio channel's calls that have many; gRPC takes one class for each kind."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, with the metadata."""
        return await continuation(_told(client_call_details, self._sources), request)


def _told(details: Any, sources: Sequence[Source]) -> Any:
    """The details of a call, which are a named tuple in both kinds of channel, with ours among its metadata.

    What the caller has set stays alone: instrumentation of gRPC sets the trace as well.
    """
    theirs = tuple(details.metadata or ())
    ours = [pair for source in sources for pair in source() if all(pair[0] != key for key, _ in theirs)]
    return details._replace(metadata=grpc.aio.Metadata(*theirs, *ours)) if ours else details
