"""The language model's and the video server as a pair of processes that take turns on one card, and the card they have.

It does not know what is asked of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from film_servers import Server, ServerEndedError
from held_card import HeldCard

from halfreel.gpu.v1 import gpu_pb2, gpu_pb2_grpc
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_runtime import nvml

GIB = 2**30
ENDED_WITHIN_S, SETTLED_WITHIN_S = 12.0, 10.0
_STILL = (gpu_pb2.MODEL_STATE_AWAKE, gpu_pb2.MODEL_STATE_ASLEEP)


@dataclass
class Peer:
    """One server, and what is known of its bytes.

    Attributes:
        server: its process.
        stub: of its own service.
        memory: of its memory service.
        layout: what decides where its weights are after its last work; None where that is not known.
        asleep_bytes: what it held asleep, once warm.
        awake_bytes: what it held awake, by layout.
    """

    server: Server
    stub: Any
    memory: Any
    layout: str | None = None
    asleep_bytes: int | None = None
    awake_bytes: dict[str, int] = field(default_factory=dict)

    def report(self) -> Any:
        """Its memory now."""
        request = llm_pb2.MemoryStatusRequest() if self.server.name == "llm" else video_pb2.MemoryStatusRequest()
        return self.stub.MemoryStatus(request, timeout=5).report

    def settled(self) -> tuple[int, int]:
        """The model's state and the allocated bytes, once two looks see the same and nothing runs."""
        deadline, before = time.monotonic() + SETTLED_WITHIN_S, None
        while time.monotonic() < deadline:
            report = self.report()
            device = report.devices[0]
            now = (int(report.model_state), int(device.allocated_bytes), device.current_phase)
            if now == before and now[0] in _STILL and not now[2]:
                break
            before = now
            time.sleep(0.05)
        return now[0], now[1]


class Pair:
    """Both servers as processes, on a card of which they have what nobody else holds."""

    def __init__(self, models: Path, folder: Path, device: str, llm: dict[str, Any], environment: dict[str, str]):
        """Starts both; each loads in its turn."""
        self.peers: dict[str, Peer] = {}
        self.not_started: dict[str, str] = {}
        self.llm = llm
        shared = {"device": device, "port": 0, "metrics-port": 0, "turns": "on", "turns-dir": folder / "turns"}
        shared |= {"turn-s": 1, "grace-s": 3, "log-level": "info"}
        svd = {"model": models / "svd" / "svd-xt", "keyframe-model": models / "svd" / "sd-turbo"}
        self._servers = [
            self._start("llm", folder, {**shared, **llm, "model": models / "chatglm3"}, environment),
            self._start("video", folder, {**shared, **svd}, environment),
        ]
        self._channels: list[grpc.Channel] = []

    @staticmethod
    def _start(name: str, folder: Path, flags: dict[str, Any], environment: dict[str, str]) -> Server:
        port_file, log = folder / f"{name}.ports", folder / f"{name}.log"
        words = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", f"halfreel_{name}", *words, "--port-file", str(port_file)],
                env={**inherited, **environment},
                stdout=output,
                stderr=output,
            )
        return Server(name, process, port_file, log)

    def wait(self, within_s: float) -> None:
        """Waits until both are ready; one that does not start is ended, and noted."""
        deadline = time.monotonic() + within_s
        for server in self._servers:
            try:
                server.wait_ready(max(1.0, deadline - time.monotonic()))
                channel = grpc.insecure_channel(f"127.0.0.1:{server.ports(5)['port']}")
            except ServerEndedError as error:
                assert server.log is not None
                self.not_started[server.name] = f"{error}: {server.log.read_text()[-900:]}"
                server.process.terminate()
                _wait_ended(server)
                continue
            self._channels.append(channel)
            own: Any = llm_pb2_grpc.LlmServiceStub if server.name == "llm" else video_pb2_grpc.VideoServiceStub
            self.peers[server.name] = Peer(server, own(channel), gpu_pb2_grpc.MemoryServiceStub(channel))

    @property
    def dead(self) -> list[str]:
        """Servers that served and have ended by themselves."""
        return [name for name, peer in self.peers.items() if peer.server.process.poll() is not None]

    def end(self) -> dict[str, int]:
        """Ends both; returns the exit codes of those that had served until now."""
        dead = self.dead
        for channel in self._channels:
            channel.close()
        for server in self._servers:
            server.process.terminate()
        codes = {server.name: _wait_ended(server) for server in self._servers}
        return {name: code for name, code in codes.items() if name in self.peers and name not in dead}


def _wait_ended(server: Server) -> int:
    try:
        return server.process.wait(ENDED_WITHIN_S)
    except subprocess.TimeoutExpired:
        server.process.kill()
        return server.process.wait()


class Card:
    """What both servers have of the card, kept to a budget by whoever holds the rest; None of it without a GPU."""

    def __init__(self, held: HeldCard | None) -> None:
        """Takes the holder."""
        self._held = held
        self._base_bytes = 0  # what is used but by the servers

    def leave(self, usable_bytes: int) -> float | None:
        """Leaves so much to the servers, what they hold already included; returns what is free then, in GiB."""
        if self._held is None:
            return None
        used = nvml.used_bytes().get(self._held.gpu_uuid, 0)
        servers = max(0, used - self._base_bytes) if self._base_bytes else 0
        free = self._held.leave_free(usable_bytes - servers)
        self._base_bytes = nvml.used_bytes().get(self._held.gpu_uuid, 0) - servers
        return round(free / GIB, 3)

    def forget(self) -> None:
        """The servers have ended."""
        self._base_bytes = 0
