"""The gRPC channel to one server; it knows no service."""

from __future__ import annotations

import json

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from halfreel_client.call_metadata import (
    AioStreamMetadataInterceptor,
    AioUnaryMetadataInterceptor,
    MetadataInterceptor,
    Source,
)
from halfreel_client.caller_trace import caller_trace
from halfreel_client.credentials import Credentials

DEFAULT_ADDRESS = "127.0.0.1:7600"
DEFAULT_LLM_ADDRESS = "127.0.0.1:7601"
DEFAULT_VIDEO_ADDRESS = "127.0.0.1:7602"

# Files come in pieces of at most 1 MiB; an uploaded picture may have 10 MiB.
_MAX_RECEIVE_BYTES = 4 * 1024 * 1024
_MAX_SEND_BYTES = 12 * 1024 * 1024

# The channel itself tries a call again only before its first answer, and only when the server said it did not begin.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A stream may be silent for a whole denoising step: pings find out whether the server is still there.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 8_000),  # core takes a minute by default, whatever the keepalive says
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", _MAX_SEND_BYTES),
    # A server that comes back is found within a second; grpc's own default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 1),
    ("grpc.service_config", _SERVICE_CONFIG),
    # A model server is in one's own network: a proxy set for the web is not meant for it.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str, credentials: Credentials | None = None) -> grpc.Channel:
    """A blocking channel to `address`, as host:port. Connects at the first call.

    Raises:
        CredentialsError: the credentials do not go together, or can't be read.
    """
    own = credentials or Credentials()
    tls, sources = own.channel_credentials(), _sources(own, address)
    channel = (
        grpc.secure_channel(address, tls, options=OPTIONS) if tls else grpc.insecure_channel(address, options=OPTIONS)
    )
    return grpc.intercept_channel(channel, MetadataInterceptor(sources))


def open_aio_channel(address: str, credentials: Credentials | None = None) -> grpc.aio.Channel:
    """An asyncio channel to `address`, as host:port. Connects at the first call.

    Raises:
        CredentialsError: the credentials do not go together, or can't be read.
    """
    own = credentials or Credentials()
    tls, sources = own.channel_credentials(), _sources(own, address)
    interceptors = [AioUnaryMetadataInterceptor(sources), AioStreamMetadataInterceptor(sources)]
    if tls:
        return grpc.aio.secure_channel(address, tls, options=OPTIONS, interceptors=interceptors)
    return grpc.aio.insecure_channel(address, options=OPTIONS, interceptors=interceptors)


def reachable(channel: grpc.Channel, timeout_s: float) -> bool:
    """Whether a server answered within `timeout_s` seconds, be it with an error.

    A call, and not `grpc.channel_ready_future`: that one leaves a thread behind which polls the channel, prints a
    traceback when the channel closes, and may keep a program from ending.
    """
    check = health_pb2_grpc.HealthStub(channel).Check
    try:
        check(health_pb2.HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True)
    except grpc.RpcError as error:
        return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return True


def _sources(credentials: Credentials, address: str) -> list[Source]:
    """What every call says beside its request."""
    token = credentials.token(address)
    return [caller_trace, token.authorization] if token else [caller_trace]
