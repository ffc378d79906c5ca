"""The gateway as a process that a test can start, kill and ask."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc
from halfreel_runtime.errors import RemoteError, error_from_status

STARTED_WITHIN_S = 30


class Gateway:
    """One gateway process; the port changes with every start."""

    def __init__(self, folder: Path, llm: list[str], video: list[str], **settings: object) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        addresses = {"llm_addresses": ",".join(llm), "video_addresses": ",".join(video)}
        self.settings = {"data_dir": self.data_dir, "stall_s": 2, "grace_s": 1, **addresses, **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.stub: Any = None
        self.serving_s = 0.0

    def start(self, *, max_file_bytes: int = 0, **extra: object) -> None:
        """Starts the process; with `max_file_bytes` it finds its disk full in the midst of a larger file."""
        ports = self.folder / "ports.json"
        ports.unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HALFREEL_", "DBOS_"))}
        settings = {"port": 0, "metrics_port": 0, "port_file": ports, **self.settings, **extra}
        environment |= {f"HALFREEL_GATEWAY_{name}".upper(): str(value) for name, value in settings.items()}
        with (self.folder / "gateway.log").open("ab") as log:
            command = [sys.executable, "-m", "halfreel_gateway"]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        if max_file_bytes:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
        deadline = time.monotonic() + STARTED_WITHIN_S
        while not ports.exists():
            assert self.process.poll() is None, self.log()[-3000:]
            assert time.monotonic() < deadline, self.log()[-3000:]
            time.sleep(0.02)
        self.ports = json.loads(ports.read_text())
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.ports['port']}")
        self.stub = gateway_pb2_grpc.GatewayServiceStub(self.channel)
        self.serving_s = time.monotonic()

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text(errors="replace")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.channel.close()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self.channel.close()
        return code

    def create(self, idea: str = "a red circle", *, request_id: str | None = None, **settings: Any) -> pb.Film:
        request = pb.CreateFilmRequest(
            request_id=uuid.uuid4().hex if request_id is None else request_id,
            idea=idea,
            settings=json_format.ParseDict(settings, pb.FilmSettings()),
        )
        return self.stub.CreateFilm(request, timeout=10).film

    def get(self, film_id: str) -> pb.Film:
        return self.stub.GetFilm(pb.GetFilmRequest(film_id=film_id), timeout=10).film

    def watch(self, film_id: str, after: int | None = None, **fields: Any) -> Any:
        request = pb.WatchFilmRequest(film_id=film_id, after_sequence_number=after, **fields)
        return self.stub.WatchFilm(request, timeout=60)

    def ended(self, film_id: str, state: int = pb.Film.STATE_SUCCEEDED, within_s: float = 30) -> pb.Film:
        film = self.until(film_id, lambda film: film.state >= pb.Film.STATE_SUCCEEDED, within_s)
        assert film.state == state, f"{film.error}\n{self.log()[-3000:]}"
        return film

    def until(self, film_id: str, holds: Any, within_s: float = 15) -> pb.Film:
        deadline = time.monotonic() + within_s
        while not holds(film := self.get(film_id)):
            assert time.monotonic() < deadline, f"{film}\n{self.log()[-3000:]}"
            time.sleep(0.03)
        return film

    def read(self, film_id: str, offset_bytes: int = 0) -> bytes:
        request = pb.ReadVideoRequest(film_id=film_id, offset_bytes=offset_bytes)
        pieces, at = [], offset_bytes
        for piece in self.stub.ReadVideo(request, timeout=10):
            assert piece.offset_bytes == at
            assert 0 < len(piece.data) <= 1 << 20
            at += len(piece.data)
            pieces.append(piece.data)
        return b"".join(pieces)


def refused(call: Any) -> RemoteError:
    """How a call that must fail fails."""
    with pytest.raises(grpc.RpcError) as caught:
        answer = call()
        if not hasattr(answer, "DESCRIPTOR"):
            list(answer)
    return error_from_status(caught.value)
