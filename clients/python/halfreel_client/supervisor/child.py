"""One server process: started, watched, stopped; it does not decide when to start it again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from halfreel_client.channel import open_channel
from halfreel_client.credentials import Credentials
from halfreel_client.supervisor.server_log import ServerLog

_HEALTH_TIMEOUT_S = 0.5
_TETHER = Path(__file__).with_name("tether.py")

# Addresses of the servers that listen already, by their names.
Addresses = Mapping[str, str]


@dataclass(frozen=True)
class ServerSpec:
    """How one server is started.

    Attributes:
        name: "llm", "video" or "gateway"; names its log.
        module: run as `python -m module`.
        health_service: asked of grpc.health.v1.
        port: 0 takes any free one, and then keeps it.
        metrics_port: likewise; None leaves it to the server's own settings.
        needs: servers whose addresses `arguments` asks for.
        arguments: flags beside those for ports.
        environment: set for this process alone.
        credentials: to ask for its health with.
    """

    name: str
    module: str
    health_service: str
    port: int = 0
    metrics_port: int | None = 0
    needs: tuple[str, ...] = ()
    arguments: Callable[[Addresses], list[str]] = field(default=lambda addresses: [])
    environment: Mapping[str, str] = field(default_factory=dict)
    credentials: Credentials = field(default_factory=Credentials)


class Health(StrEnum):
    """What a server says of itself."""

    SILENT = "silent"
    NOT_SERVING = "not serving"
    SERVING = "serving"


class Child:
    """One server's process, at most one at a time, in a process group of its own."""

    def __init__(self, spec: ServerSpec, run_folder: Path, log: ServerLog) -> None:
        self.spec = spec
        self.log = log
        self.port = spec.port
        self._port_file = run_folder / f"{spec.name}.port.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def address(self) -> str:
        """Where the server listens, as host:port; empty until it is known."""
        return f"127.0.0.1:{self.port}" if self.port else ""

    def start(self, addresses: Addresses) -> None:
        """Starts the process. To be called by the thread that lives as long as the supervisor: see `tether`."""
        self._port_file.unlink(missing_ok=True)
        flags = ["--port", str(self.port), "--port-file", str(self._port_file)]
        if self.spec.metrics_port is not None:
            flags += ["--metrics-port", str(self.spec.metrics_port)]
        with self.log.open_for_server() as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), self.spec.module),
                    *(flags + self.spec.arguments(addresses)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.spec.environment},
                process_group=0,
            )

    def listens(self) -> bool:
        """Whether the process has told its port; from then on `address` is known."""
        try:
            told = json.loads(self._port_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        self.port = int(told["port"])
        return True

    def health(self) -> Health:
        """What the server says; waits half a second at most."""
        if self._channel is None:
            self._channel = open_channel(self.address, self.spec.credentials)
        request = health_pb2.HealthCheckRequest(service=self.spec.health_service)
        try:
            reply = health_pb2_grpc.HealthStub(self._channel).Check(request, timeout=_HEALTH_TIMEOUT_S)
        except grpc.RpcError:
            return Health.SILENT
        serving = reply.status == health_pb2.HealthCheckResponse.SERVING
        return Health.SERVING if serving else Health.NOT_SERVING

    def exit_code(self) -> int | None:
        """The code of an ended process, negative for a signal; what it left in its group is killed. None if it runs."""
        if self._process is None:
            return None
        # The ended process is looked at before it is reaped: until then its group's number cannot be given away.
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return None
        self._kill_group()
        code = self._process.wait()
        self._process = None
        return code

    def terminate(self) -> None:
        """Asks the process to drain and end."""
        if self._process is not None:
            # Not Popen.send_signal, which reaps an ended process behind `exit_code`.
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process and its group at once."""
        if self._process is not None:
            self._kill_group()

    def close(self) -> None:
        """Ends the connection used to ask for health."""
        if self._channel is not None:
            self._channel.close()

    def _kill_group(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
