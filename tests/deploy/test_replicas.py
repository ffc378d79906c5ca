"""Two servers of each kind on PostgreSQL: they share the work evenly, and a kill of one of each loses no film."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from postgresql_cluster import Cluster
from prometheus_client.parser import text_string_to_metric_families

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(900)]

NAMES = ("llm-1", "llm-2", "video-1", "video-2", "gateway-1", "gateway-2")
FILM = {"scene_count": 2, "scene_seconds": 1, "step_count": 2}
FILM_COUNT = 20
EVEN_WITHIN = 0.20
TAKEN_OVER_WITHIN_S = 30.0
STARTED_WITHIN_S = 180.0
DONE_WITHIN_S = 600.0


class Replica:
    """One server process."""

    def __init__(self, name: str, folder: Path, **settings: object) -> None:
        self.name, self.folder = name, folder
        self.service = name.split("-")[0]
        self._ports = folder / f"{name}.json"
        self._ports.unlink(missing_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
        settings = {"port": 0, "metrics_port": 0, "port_file": self._ports, **settings}
        environment |= {f"HALFREEL_{self.service}_{key}".upper(): str(value) for key, value in settings.items()}
        with (folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", f"halfreel_{self.service}"]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def wait_listening(self) -> None:
        deadline = time.monotonic() + STARTED_WITHIN_S
        while not self._ports.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    @property
    def port(self) -> int:
        return int(json.loads(self._ports.read_text())["port"])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")[-3000:]

    def count(self, metric: str, **labels: str) -> float:
        """A counter of the server's, over all other labels."""
        address = f"http://127.0.0.1:{json.loads(self._ports.read_text())['metrics_port']}/metrics"
        with urllib.request.urlopen(address, timeout=30) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = [sample for family in families for sample in family.samples if sample.name == metric]
        assert samples, f"{self.name} has no {metric}"
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


class Cell:
    """The six servers and their database."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.replicas: dict[str, Replica] = {}
        self._channels: dict[str, grpc.Channel] = {}
        self.start(*NAMES[:4])
        self.start(*NAMES[4:])

    def start(self, *names: str) -> None:
        """Starts servers, together; one that was there before comes back at its address."""
        settings = {name: self._settings(name) for name in names}  # before the old addresses are forgotten
        for name in names:
            self.replicas[name] = Replica(name, self.folder, **settings[name])
        for name in names:
            self.replicas[name].wait_listening()

    def _settings(self, name: str) -> dict[str, object]:
        port = self.replicas[name].port if name in self.replicas else 0
        settings: dict[str, object] = {"device": "cpu", "thread_count": 1}
        if name.startswith("gateway"):
            addresses = {
                f"{kind}_addresses": ",".join(self.replicas[f"{kind}-{number}"].address for number in (1, 2))
                for kind in ("llm", "video")
            }
            shared = {"data_dir": self.folder / "data", "database_url": self.cluster.url(), "executor_id": name}
            # One scene for each gateway and video server: then nobody takes more than a fair share of the queue.
            settings = {**addresses, **shared, "scene_concurrency": 1}
        return {**settings, "port": port}

    def gateway(self, name: str) -> Any:
        if name not in self._channels:
            self._channels[name] = grpc.insecure_channel(self.replicas[name].address)
        return gateway_pb2_grpc.GatewayServiceStub(self._channels[name])

    def create(self, name: str, idea: str) -> str:
        request = pb.CreateFilmRequest(request_id=uuid.uuid4().hex, idea=idea, settings=pb.FilmSettings(**FILM))
        film_id = self.gateway(name).CreateFilm(request, timeout=30, wait_for_ready=True).film.film_id
        assert isinstance(film_id, str)
        return film_id

    def film(self, name: str, film_id: str) -> pb.Film:
        return self.gateway(name).GetFilm(pb.GetFilmRequest(film_id=film_id), timeout=30).film

    def wait_ended(self, name: str, film_ids: list[str]) -> dict[str, pb.Film]:
        deadline = time.monotonic() + DONE_WITHIN_S
        while True:
            films = {film_id: self.film(name, film_id) for film_id in film_ids}
            if all(film.state >= pb.Film.STATE_SUCCEEDED for film in films.values()):
                return films
            assert time.monotonic() < deadline, Counter(film.state for film in films.values())
            time.sleep(0.5)

    def at_work(self) -> list[tuple[str, str]]:
        """Workflows that are begun and not ended: the film's id and the gateway's name."""
        query = "SELECT workflow_uuid, executor_id FROM dbos.workflow_status WHERE status = 'PENDING'"
        with psycopg.connect(self.cluster.url()) as connection:
            return [(workflow_id[:32], executor_id) for workflow_id, executor_id in connection.execute(query)]

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        for name in reversed(NAMES):
            self.replicas[name].stop()


@pytest.fixture(scope="module")
def cell(postgresql_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    cluster = Cluster(postgresql_programs)
    cell = Cell(tmp_path_factory.mktemp("cell"), cluster)
    yield cell
    cell.close()
    cluster.remove()


def done_by(cell: Cell) -> dict[str, float]:
    """How much each server has done so far: scripts, clips, and of a gateway scenes."""
    done = {}
    for name, replica in cell.replicas.items():
        if replica.service == "gateway":
            done[name] = replica.count("halfreel_scene_attempts_total", outcome="succeeded")
        else:
            done[name] = replica.count("halfreel_requests_total", method=f"{replica.service.title()}Service/Generate")
    return done


def test_work_is_spread_evenly(cell: Cell) -> None:
    before = done_by(cell)
    film_ids = [cell.create(f"gateway-{1 + index % 2}", f"a red circle, part {index}") for index in range(FILM_COUNT)]
    films = cell.wait_ended("gateway-1", film_ids)
    assert {film.state for film in films.values()} == {pb.Film.STATE_SUCCEEDED}
    assert cell.wait_ended("gateway-2", film_ids) == films, "both gateways tell the same"
    after = done_by(cell)
    shares = {name: after[name] - before[name] for name in NAMES}
    print("done by each:", shares)
    for kind, total in (("llm", FILM_COUNT), ("video", 2 * FILM_COUNT), ("gateway", 2 * FILM_COUNT)):
        one, two = (shares[f"{kind}-{number}"] for number in (1, 2))
        assert one + two == total
        assert abs(one - two) <= 2 * EVEN_WITHIN * total / 2, f"{kind}: {one} and {two}"


def test_the_living_take_over_from_the_dead(cell: Cell) -> None:
    film_ids = [cell.create(f"gateway-{1 + index % 2}", f"a blue square, part {index}") for index in range(FILM_COUNT)]
    deadline = time.monotonic() + DONE_WITHIN_S
    while not (
        any(film.state == pb.Film.STATE_RENDERING for film in (cell.film("gateway-1", each) for each in film_ids))
        and {"gateway-1", "gateway-2"} <= {executor for _, executor in cell.at_work()}
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for name in ("gateway-1", "llm-1", "video-1"):
        cell.replicas[name].kill()
    killed = time.monotonic()
    orphans = {film_id for film_id, executor in cell.at_work() if executor == "gateway-1"}
    assert orphans, "the gateway that was killed was at work"
    while any(executor == "gateway-1" for _, executor in cell.at_work()):
        assert time.monotonic() - killed < TAKEN_OVER_WITHIN_S, f"nobody took over {cell.at_work()}"
        time.sleep(0.1)
    taken_over_s = time.monotonic() - killed
    films = cell.wait_ended("gateway-2", film_ids)
    print(f"{len(orphans)} of {FILM_COUNT} films taken over within {taken_over_s:.1f} s of the kill")
    assert {film.state for film in films.values()} == {pb.Film.STATE_SUCCEEDED}
    redone = sum(scene.attempt_count - 1 for film in films.values() for scene in film.scenes)
    assert redone <= 2, "one scene for the gateway that was killed, and one for the video server"
    for film_id in film_ids:
        assert len(read(cell, film_id)) == films[film_id].video.size_bytes

    # The dead come back under their names, and have their share again.
    cell.start("llm-1", "video-1", "gateway-1")
    later = cell.create("gateway-2", "a green star")
    assert cell.wait_ended("gateway-2", [later])[later].state == pb.Film.STATE_SUCCEEDED


def read(cell: Cell, film_id: str) -> bytes:
    pieces = cell.gateway("gateway-2").ReadVideo(pb.ReadVideoRequest(film_id=film_id), timeout=60)
    return b"".join(piece.data for piece in pieces)
