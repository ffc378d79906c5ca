"""Channels to model servers: one channel over all addresses of a kind, round robin, those that do not serve left out.

It does not know what is called over them.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from halfreel_runtime.bearer import AioBearerInterceptor, BearerInterceptor, BearerToken
from halfreel_runtime.propagation import AioPropagationInterceptor, PropagationInterceptor

_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/\s]+)):(?P<port>\d{1,5})")
_DNS_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(\.{_DNS_LABEL}){{0,10}}\.?")
_MAX_PORT = 65535
# The largest event is a video chunk of 1 MiB.
_MAX_RECEIVE_BYTES = 4 << 20
# A server that comes back must be found well within the 5 s in which films go on.
_MAX_RECONNECT_MS = 1000

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # the gateway tries again by itself, and tells the film so
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 8_000),  # core takes a minute by default, whatever the keepalive says
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
)


@dataclass(frozen=True)
class ModelAccess:
    """What channels to model servers are opened with.

    Attributes:
        tls: None for plain connections.
        token: shown at each call; None for none.
    """

    tls: grpc.ChannelCredentials | None
    token: BearerToken | None


# To servers that ask for nothing.
OPEN = ModelAccess(None, None)


def target(addresses: Sequence[str]) -> str:
    """The addresses as gRPC names them: several IPv4, or several IPv6, or one DNS name.

    Raises:
        ValueError: names the address that is wrong, or says why they don't go together.
    """
    if not addresses:
        raise ValueError("there must be at least one address, such as 127.0.0.1:7601")
    kinds = [_kind(address) for address in addresses]
    if kinds == ["dns"]:
        return f"dns:///{addresses[0]}"
    if len(set(kinds)) > 1 or "dns" in kinds:
        raise ValueError(
            "several addresses must be all IPv4 or all IPv6; several servers behind names need one DNS name"
            " with a record for each (a headless service)"
        )
    return f"{kinds[0]}:{','.join(addresses)}"


def _kind(address: str) -> str:
    """ipv4, ipv6 or dns."""
    parts = _HOST_PORT.fullmatch(address)
    if parts is None or not 0 < int(parts["port"]) <= _MAX_PORT:
        raise ValueError(f"{address!r} is not an address; it must be host:port, such as 127.0.0.1:7601 or [::1]:7601")
    host = parts["ipv6"] or parts["host"]
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        if parts["ipv6"] is None and _DNS_NAME.fullmatch(host):
            return "dns"
        raise ValueError(f"{address!r} names no host; it must be host:port, such as 127.0.0.1:7601") from None
    return f"ipv{version}"


def balanced_channel(addresses: Sequence[str], service: str, access: ModelAccess = OPEN) -> grpc.Channel:
    """A channel that gives each call to the next of the servers whose health is SERVING.

    Args:
        addresses: as `target` takes them; over TLS, each server's certificate must be for the first one's host.
        service: full name of the gRPC service, such as "halfreel.llm.v1.LlmService".
        access: certificates and token.

    Returns:
        A channel for threads; a call fails with UNAVAILABLE while no server serves.
    """
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": service}}
    options = [*_OPTIONS, ("grpc.service_config", json.dumps(config))]
    if len(addresses) > 1:
        # What the certificates are checked for: by itself gRPC would take all the addresses for one name.
        options.append(("grpc.default_authority", addresses[0]))
    if access.tls is None:
        channel = grpc.insecure_channel(target(addresses), options=options)
    else:
        channel = grpc.secure_channel(target(addresses), access.tls, options=options)
    told = grpc.intercept_channel(channel, PropagationInterceptor())
    return told if access.token is None else grpc.intercept_channel(told, BearerInterceptor(access.token))


def single_channel(address: str, access: ModelAccess, name: str) -> grpc.aio.Channel:
    """A channel to one server, for asyncio and calls with one answer, whatever its health.

    Args:
        address: of the server.
        access: certificates and token.
        name: what the server's certificate must be for, with a port: `address` itself, or the DNS name that led to it.
    """
    options = [*_OPTIONS, ("grpc.default_authority", name)]
    telling: list[grpc.aio.ClientInterceptor] = [AioPropagationInterceptor()]
    if access.token is not None:
        telling.append(AioBearerInterceptor(access.token))
    if access.tls is None:
        return grpc.aio.insecure_channel(target([address]), options=options, interceptors=telling)
    return grpc.aio.secure_channel(target([address]), access.tls, options=options, interceptors=telling)
