"""A new version takes over the store of an older one, with films in flight; what the older one made stays readable.

The stores were left by killed gateways of those versions (tests/make_store.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerfile import ROOT
from gateway_doubles import LLM, VIDEO, LlmDouble, Serving, VideoDouble
from gateway_process import Gateway
from postgresql_cluster import Cluster

from halfreel.gateway.v1 import gateway_pb2 as pb

STORES = ROOT / "tests" / "stores"


@pytest.fixture(params=sorted(path.name for path in STORES.iterdir()))
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def store(request: pytest.FixtureRequest, version: str, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The data folder and the database's URL, both as the older version left them."""
    data, left = tmp_path / "data", STORES / version
    shutil.copytree(left / request.param, data)
    if request.param == "sqlite":
        with contextlib.closing(sqlite3.connect(data / "gateway.sqlite")) as database:
            database.executescript((left / "sqlite.sql").read_text())
        yield data, ""
    else:
        cluster = Cluster(request.getfixturevalue("postgresql_programs"))
        script = cluster.folder / "store.sql"
        shutil.copy(left / "postgresql.sql", script)
        cluster.run("psql", "--quiet", "--set=ON_ERROR_STOP=1", "--file", str(script), cluster.url())
        yield data, cluster.url()
        cluster.remove()


@pytest.fixture
def gateway(store: tuple[Path, str], tmp_path: Path) -> Iterator[Gateway]:
    (tmp_path / "made").mkdir()
    llm, video = Serving(LLM, LlmDouble()), Serving(VIDEO, VideoDouble(tmp_path / "made"))
    video.double.crf = "40"
    gateway = Gateway(tmp_path, [llm.address], [video.address], database_url=store[1])
    gateway.start()
    yield gateway
    assert gateway.stop() == 0, gateway.log()[-3000:]
    llm.down()
    video.down()


def listed(gateway: Gateway) -> dict[str, Any]:
    return {film.request_id: film for film in gateway.stub.ListFilms(pb.ListFilmsRequest(), timeout=10).films}


def test_films_are_readable_and_those_in_flight_come_to_their_end(gateway: Gateway) -> None:
    films = listed(gateway)
    assert set(films) == {"finished", "rendering", "writing"}
    finished = films["finished"]
    assert finished.state == pb.Film.STATE_SUCCEEDED
    assert [scene.attempt_count for scene in finished.scenes] == [1, 1]
    assert hashlib.sha256(gateway.read(finished.film_id)).hexdigest() == finished.video.sha256
    last = list(gateway.watch(finished.film_id, 0))[-1]
    assert last.state_changed.state == pb.Film.STATE_SUCCEEDED

    for name in ("rendering", "writing"):
        gateway.ended(films[name].film_id)
        numbers = [event.sequence_number for event in gateway.watch(films[name].film_id, 0)][1:]
        assert numbers == list(range(1, len(numbers) + 1))
    rendered = gateway.get(films["rendering"].film_id)
    assert [scene.attempt_count for scene in rendered.scenes] == [1, 2], "the clip that was there is not made again"
    assert rendered.video.sha256 == finished.video.sha256, "the same seed, before and after"

    # The client that asked the older version asks again, and is told of the same film.
    again = gateway.create("half rendered", request_id="rendering", **settings_of(finished))
    assert again.film_id == rendered.film_id
    for film in films.values():
        gateway.stub.DeleteFilm(pb.DeleteFilmRequest(film_id=film.film_id), timeout=10)
    assert not listed(gateway)
    assert not list((gateway.data_dir / "clips").iterdir())
    assert not list((gateway.data_dir / "films").iterdir())


def test_it_is_taken_over_once(gateway: Gateway) -> None:
    films = listed(gateway)
    for name in ("rendering", "writing"):
        gateway.ended(films[name].film_id)
    before = listed(gateway)
    assert gateway.stop() == 0
    gateway.start()
    assert listed(gateway) == before
    gateway.ended(gateway.create("a new film", scene_count=1).film_id)


def settings_of(film: pb.Film) -> dict[str, Any]:
    """What was asked for, as tests/make_store.py asked."""
    return {"scene_count": 2, "scene_seconds": 1, "width_px": 64, "height_px": 64, "fps": 7, "seed": film.settings.seed}
