"""A database that is away: films wait, clients are told to come back, and nothing is lost or done twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from gateway_doubles import LLM, VIDEO, LlmDouble, Serving, VideoDouble
from gateway_process import Gateway, refused
from postgresql_cluster import Cluster

from halfreel.gateway.v1 import gateway_pb2 as pb

pytestmark = pytest.mark.postgresql
FILM = {"scene_count": 3, "seed": 12}


@pytest.fixture
def cluster(postgresql_programs: Path) -> Iterator[Cluster]:
    cluster = Cluster(postgresql_programs)
    yield cluster
    cluster.remove()


@pytest.fixture
def video(tmp_path: Path) -> Iterator[Serving]:
    (tmp_path / "clips").mkdir()
    serving = Serving(VIDEO, VideoDouble(tmp_path / "clips"))
    yield serving
    serving.down()


@pytest.fixture
def gateway(tmp_path: Path, cluster: Cluster, video: Serving) -> Iterator[Gateway]:
    llm = Serving(LLM, LlmDouble())
    gateway = Gateway(tmp_path, [llm.address], [video.address], database_url=cluster.url())
    yield gateway
    if gateway.process is not None:
        gateway.stop()
    llm.down()


def test_films_wait_for_it(gateway: Gateway, cluster: Cluster, video: Serving) -> None:
    gateway.start()
    undisturbed = gateway.ended(gateway.create("undisturbed", **FILM).film_id)
    video.double.behaviours.script("ok", "hold")
    film = gateway.create("disturbed", **FILM)
    assert video.double.behaviours.held.wait(20)
    gateway.until(film.film_id, lambda film: film.scenes[1].state == pb.Scene.STATE_RENDERING)
    cluster.stop()
    began = time.monotonic()
    # A clip comes whole while nothing can be stored; and who asks is told to ask again, soon.
    video.double.behaviours.let_go.set()
    error = refused(lambda: gateway.create("while it is away", request_id="away"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"), error
    assert error.retry_after_s
    assert refused(lambda: gateway.get(film.film_id)).reason == "DATABASE_UNAVAILABLE"
    time.sleep(max(0.0, 6.0 - (time.monotonic() - began)))
    assert gateway.process is not None
    assert gateway.process.poll() is None, gateway.log()[-3000:]
    cluster.start()
    gateway.until(film.film_id, lambda film: film.state == pb.Film.STATE_SUCCEEDED, within_s=60)
    ended = gateway.get(film.film_id)
    assert ended.video.sha256 == undisturbed.video.sha256
    assert sum(scene.attempt_count - 1 for scene in ended.scenes) <= 1
    numbers = [event.sequence_number for event in gateway.watch(film.film_id, 0)][1:]
    assert numbers == list(range(1, len(numbers) + 1))
    gateway.ended(gateway.create("while it is away", request_id="away", scene_count=1).film_id)
    assert len(gateway.stub.ListFilms(pb.ListFilmsRequest(), timeout=5).films) == 3
