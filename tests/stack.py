"""A stack of the three real servers, as three processes that a test can kill and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ports import free_port

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc

SERVICE_NAMES = {
    "llm": "halfreel.llm.v1.LlmService",
    "video": "halfreel.video.v1.VideoService",
    "gateway": "halfreel.gateway.v1.GatewayService",
}
SERVING_WITHIN_S = 180.0  # three at once, cold, on two busy cores


class Stack:
    """llm, video and gateway on loopback; ports stay the same over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in SERVICE_NAMES}
        self.metrics_ports = {name: free_port() for name in SERVICE_NAMES}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.open()

    def open(self) -> None:
        """A channel to the gateway; once more after `stop`."""
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.ports['gateway']}")
        self.gateway = gateway_pb2_grpc.GatewayServiceStub(self.channel)

    def start(self, name: str, **extra: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
        settings = {"port": str(self.ports[name]), "metrics_port": str(self.metrics_ports[name]), **extra}
        if name == "gateway":
            settings["data_dir"] = str(self.folder / "data")
            settings["llm_addresses"] = f"127.0.0.1:{self.ports['llm']}"
            settings["video_addresses"] = f"127.0.0.1:{self.ports['video']}"
        else:
            settings["device"] = "cpu"
        environment |= {f"HALFREEL_{name}_{key}".upper(): value for key, value in settings.items()}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"halfreel_{name}"], env=environment, stdout=log, stderr=log
            )

    def wait_serving(self, *names: str) -> None:
        for name in names:
            self._wait_serving(name)

    def _wait_serving(self, name: str) -> None:
        deadline = time.monotonic() + SERVING_WITHIN_S
        request = health_pb2.HealthCheckRequest(service=SERVICE_NAMES[name])
        while time.monotonic() < deadline:
            assert self.processes[name].poll() is None, f"{name} ended: {self.log(name)[-2000:]}"
            with grpc.insecure_channel(f"127.0.0.1:{self.ports[name]}") as channel:
                try:
                    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.RpcError:
                    pass
            time.sleep(0.1)
        pytest.fail(f"{name} was not SERVING within {SERVING_WITHIN_S:.0f} s: {self.log(name)[-2000:]}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """SIGKILL, as the kernel's out-of-memory killer would."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait(10)

    def stop(self) -> dict[str, int]:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        codes = {name: process.wait(40) for name, process in self.processes.items()}
        self.channel.close()
        return codes

    def create(self, idea: str, *, request_id: str | None = None, **settings: float) -> pb.Film:
        request = pb.CreateFilmRequest(
            request_id=request_id or uuid.uuid4().hex, idea=idea, settings=pb.FilmSettings(**settings)
        )
        return self.gateway.CreateFilm(request, timeout=10, wait_for_ready=True).film

    def get(self, film_id: str) -> pb.Film:
        return self.gateway.GetFilm(pb.GetFilmRequest(film_id=film_id), timeout=10, wait_for_ready=True).film

    def watch(self, film_id: str, after: int | None = None) -> Iterator[pb.WatchFilmResponse]:
        request = pb.WatchFilmRequest(film_id=film_id, after_sequence_number=after)
        return self.gateway.WatchFilm(request, timeout=150, wait_for_ready=True)

    def wait_ended(self, film_id: str, within_s: float = 300) -> pb.Film:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            film = self.get(film_id)
            if film.state >= pb.Film.STATE_SUCCEEDED:
                return film
            time.sleep(0.1)
        return pytest.fail(f"the film did not end within {within_s:.0f} s: {film}")

    def read(self, film_id: str) -> bytes:
        pieces = self.gateway.ReadVideo(pb.ReadVideoRequest(film_id=film_id), timeout=30)
        return b"".join(piece.data for piece in pieces)
