"""The three servers of Halfreel as one machine runs them: modules, ports, devices, addresses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from halfreel_client.credentials import Credentials, CredentialsError
from halfreel_client.gpus import Gpu
from halfreel_client.supervisor.child import Addresses, ServerSpec

# /metrics of a server is found this far above its port.
METRICS_PORT_DISTANCE = 100

# A film that was cancelled leaves nothing to wait for.
PASSING_GRACE_S = "5"

_PACKAGES = {"llm": "halfreel-llm", "video": "halfreel-video", "gateway": "halfreel-gateway"}


@dataclass(frozen=True)
class Ports:
    """Where the three servers listen; 0 takes any free port."""

    gateway: int = 7600
    llm: int = 7601
    video: int = 7602


def missing_packages() -> list[str]:
    """The distributions to install before all three servers can run here; finds them without importing them."""
    return [name for service, name in _PACKAGES.items() if importlib.util.find_spec(f"halfreel_{service}") is None]


def taken_ports(ports: Ports) -> list[str]:
    """What cannot be listened on, each as "llm: 127.0.0.1:7601"."""
    wanted = {}
    for name in ("gateway", "llm", "video"):
        port = getattr(ports, name)
        wanted[name] = port
        if (metrics := _metrics_port(name, port, os.environ)) is not None:
            wanted[f"metrics of {name}"] = metrics
    return [f"{name}: 127.0.0.1:{port}" for name, port in wanted.items() if port and not _is_free(port)]


def specs(
    ports: Ports,
    data_folder: Path,
    gpus: list[Gpu],
    environ: Mapping[str, str],
    credentials: Credentials | None = None,
    *,
    passing: bool = False,
) -> list[ServerSpec]:
    """How the three servers are started here, models first.

    Args:
        ports: where they listen.
        data_folder: the gateway keeps films, clips and jobs in it.
        gpus: with two, each model server has one of its own; otherwise each finds its device itself.
        environ: what a person has set for a server there is not overruled.
        credentials: for servers that are given certificates or tokens there.
        passing: the servers are for one film: they drain fast, and keep no job in a database that others use.
    """
    grace = ["--grace-s", PASSING_GRACE_S] if passing else []
    database = ["--database-url", ""] if passing else []
    devices = {"llm": "cuda:0", "video": "cuda:1"} if len(gpus) > 1 and not torch_version().endswith("+cpu") else {}

    def model(name: str, port: int, health_service: str) -> ServerSpec:
        own = f"HALFREEL_{name.upper()}_DEVICE" in environ or f"HALFREEL_{name.upper()}_CONFIG" in environ
        device = [] if own or name not in devices else ["--device", devices[name]]
        return ServerSpec(
            name,
            f"halfreel_{name}",
            health_service,
            port,
            _metrics_port(name, port, environ),
            arguments=lambda addresses: device + grace,
            credentials=local_credentials(name, credentials, environ),
        )

    def gateway_arguments(addresses: Addresses) -> list[str]:
        return [
            *("--data-dir", str(data_folder)),
            *("--llm-addresses", addresses["llm"], "--video-addresses", addresses["video"]),
            *grace,
            *database,
        ]

    return [
        model("llm", ports.llm, "halfreel.llm.v1.LlmService"),
        model("video", ports.video, "halfreel.video.v1.VideoService"),
        ServerSpec(
            "gateway",
            "halfreel_gateway",
            "halfreel.gateway.v1.GatewayService",
            ports.gateway,
            _metrics_port("gateway", ports.gateway, environ),
            needs=("llm", "video"),
            arguments=gateway_arguments,
            credentials=local_credentials("gateway", credentials, environ),
        ),
    ]


def torch_version() -> str:
    """The installed torch, by its name alone; a build for CPUs ends in "+cpu". Empty when there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def local_credentials(name: str, given: Credentials | None, environ: Mapping[str, str]) -> Credentials:
    """How one signs in to a server that is started here: with as much of what was given as the server asks for.

    Raises:
        CredentialsError: the server has a certificate, and there is no CA to check it by.
    """
    own = given or Credentials()
    tls, tokens = (f"HALFREEL_{name.upper()}_{setting}" for setting in ("TLS_CERTIFICATE_FILE", "TOKENS_FILE"))
    if environ.get(tls) and own.ca_file is None:
        raise CredentialsError(f"{tls} is set; name the CA that has signed it: --ca-file or HALFREEL_CA_FILE")
    if not environ.get(tls):
        own = replace(own, ca_file=None, certificate_file=None, key_file=None)
    return own if environ.get(tokens) else replace(own, token_file=None)


def _metrics_port(name: str, port: int, environ: Mapping[str, str]) -> int | None:
    if f"HALFREEL_{name.upper()}_METRICS_PORT" in environ:
        return None
    return port + METRICS_PORT_DISTANCE if port else 0


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A port whose last connections are just closing is free; one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
