"""The main job with films and jobs in PostgreSQL instead of SQLite."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator

import psycopg
import pytest
from gateway_doubles import Serving
from gateway_process import Gateway
from postgresql_cluster import Cluster

from halfreel.gateway.v1 import gateway_pb2 as pb

pytestmark = pytest.mark.postgresql

# tests/deploy waits for all of it.
TAKEN_OVER_WITHIN_S = 30
DEAD_BEFORE_S = 12


@pytest.fixture(scope="module")
def gateways(
    postgresql_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, llm: Serving, video: Serving
) -> Iterator[tuple[Gateway, Gateway]]:
    """Two gateways that share a database and a data folder."""
    database_url = postgresql_cluster.new_database()
    one, other = (Gateway(tmp_path_factory.mktemp(name), [llm.address], [video.address]) for name in ("one", "other"))
    for gateway, name in ((one, "one"), (other, "other")):
        gateway.settings |= {"database_url": database_url, "data_dir": one.data_dir, "executor_id": name}
        gateway.start()
    yield one, other
    for gateway in (one, other):
        gateway.stop()


def test_a_film_is_made_and_seen_from_both(gateways: tuple[Gateway, Gateway], video: Serving) -> None:
    one, other = gateways
    film = one.create("in postgresql", scene_count=3, seed=5, request_id="pg-1")
    assert other.create("in postgresql", scene_count=3, seed=5, request_id="pg-1").film_id == film.film_id
    events = list(other.watch(film.film_id, 0))
    numbers = [event.sequence_number for event in events if event.sequence_number and not event.HasField("film")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert events[-1].state_changed.state == pb.Film.STATE_SUCCEEDED
    ended = one.get(film.film_id)
    assert other.get(film.film_id) == ended
    for gateway in gateways:  # a busy machine may take longer than a scrape waits for the database
        assert any('halfreel_films{state="succeeded"} 1.0' in metrics(gateway) for _ in range(20))
    assert len(other.read(film.film_id)) == ended.video.size_bytes
    assert one.stub.ListFilms(pb.ListFilmsRequest(page_size=1), timeout=20).films[0] == ended
    video.double.behaviours.script("hold")
    cancelled = one.create("cancelled from the other", scene_count=1)
    assert video.double.behaviours.held.wait(30)
    other.stub.CancelFilm(pb.CancelFilmRequest(film_id=cancelled.film_id), timeout=20)
    assert video.double.behaviours.cancelled.wait(10)
    for film_id in (cancelled.film_id, film.film_id):
        other.stub.DeleteFilm(pb.DeleteFilmRequest(film_id=film_id), timeout=20)
    assert not list((one.data_dir / "films").iterdir())


def metrics(gateway: Gateway) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.ports['metrics_port']}/metrics", timeout=20) as page:
        return str(page.read().decode())


def test_a_killed_gateway_resumes(gateways: tuple[Gateway, Gateway], video: Serving) -> None:
    one, _ = gateways
    video.double.behaviours.script("ok", "hold")
    film = one.create("killed", scene_count=3, seed=6)
    assert video.double.behaviours.held.wait(30)
    one.until(film.film_id, lambda film: film.scenes[1].state == pb.Scene.STATE_RENDERING)
    one.kill()
    video.double.behaviours.let_go.set()  # the held scene may be the other gateway's
    one.start()
    ended = one.ended(film.film_id)
    assert sum(scene.attempt_count for scene in ended.scenes) <= 4


def test_films_of_a_dead_gateway_are_taken_over(gateways: tuple[Gateway, Gateway], video: Serving) -> None:
    one, other = gateways
    undisturbed = one.ended(one.create("left behind", scene_count=3, seed=7).film_id)
    video.double.behaviours.reset()
    video.double.behaviours.script("ok", "hold", "hold")
    film = one.create("left behind", scene_count=3, seed=7)
    assert video.double.behaviours.held.wait(30)
    one.kill()
    began_s = time.monotonic() - DEAD_BEFORE_S
    with psycopg.connect(one.settings["database_url"]) as database:
        age = "UPDATE gateways SET beat_time = beat_time - make_interval(secs => %s) WHERE executor_id = 'one'"
        database.execute(age, [DEAD_BEFORE_S])
    (one.data_dir / "clips" / ".one-0123456789abcdef.part").write_bytes(b"half a clip")
    video.double.behaviours.let_go.set()
    ended = other.ended(film.film_id, within_s=TAKEN_OVER_WITHIN_S)
    assert time.monotonic() - began_s < TAKEN_OVER_WITHIN_S
    assert ended.video.sha256 == undisturbed.video.sha256
    assert not list((one.data_dir / "clips").glob(".*"))
    one.start()  # finds nothing left to do
    one.ended(one.create("back again", scene_count=1).film_id)


def test_a_gateway_that_stops_hands_over_at_once(gateways: tuple[Gateway, Gateway], llm: Serving) -> None:
    one, other = gateways
    llm.double.behaviours.script("hold")
    film = one.create("handed over", scene_count=1, seed=8)
    assert llm.double.behaviours.held.wait(30)
    assert one.stop() == 0
    llm.double.behaviours.let_go.set()
    other.ended(film.film_id, within_s=12)
    one.start()
