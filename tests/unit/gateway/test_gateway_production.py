"""A step of a film's production and the database: it waits for one that is away, and for no other reason."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import database as db
from halfreel_gateway import production as production_module
from halfreel_gateway.artifacts import Artifacts
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.failures import FilmFailedError, is_database_away
from halfreel_gateway.film_traces import FilmTraces
from halfreel_gateway.migrations import migrate
from halfreel_gateway.production import Production
from halfreel_gateway.running import RunningSteps
from halfreel_gateway.store import FilmStore

FAILURE = FilmFailedError(grpc.StatusCode.INTERNAL, "INTERNAL", "x")
NO_DISK = sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
LOST = sa.exc.OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error"))
CLOSED = sa.exc.InterfaceError("SELECT", {}, sqlite3.InterfaceError("closed"), connection_invalidated=True)
MISUSED = sa.exc.InterfaceError("SELECT", {}, sqlite3.InterfaceError("bad parameter"))
BUSY = sa.exc.TimeoutError("QueuePool limit reached")


class Joiner:
    """Fails in a scripted way, then has waited."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def wait_rendered(self, film_id: str) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(database_url("", tmp_path))
    with database.writing() as connection:
        migrate(connection)
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> FilmStore:
    return FilmStore(database, lambda *_: None, max_active_count=10)


@pytest.fixture
def joiner() -> Joiner:
    return Joiner()


@pytest.fixture
def production(store: FilmStore, joiner: Joiner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Production:
    monkeypatch.setattr(production_module, "_RETRY_WAIT_S", 0.01)
    no: Any = None
    return Production(store, RunningSteps(9), Artifacts(tmp_path, "own"), no, no, no, joiner, FilmTraces())  # type: ignore[arg-type]


@pytest.fixture
def film_id(store: FilmStore) -> str:
    return store.create("r", "an idea", pb.FilmSettings(seed=1), "f", owner="").film_id


@pytest.mark.parametrize("error", [LOST, CLOSED, BUSY, NO_DISK])
def test_a_failure_is_stored_once_the_database_is_back(
    production: Production, store: FilmStore, film_id: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    change, errors = store.change, [error, error]

    def away_twice(film_id: str) -> Any:
        if errors:
            raise errors.pop()
        return change(film_id)

    monkeypatch.setattr(store, "change", away_twice)
    production.fail(film_id, FAILURE)
    assert not errors
    assert store.film(film_id).film.error.reason == "INTERNAL"


def test_a_failure_that_the_database_refuses_is_not_stored_again_and_again(
    production: Production, store: FilmStore, database: Database, film_id: str
) -> None:
    with database.writing() as connection:  # the number of the next event is taken
        connection.execute(sa.insert(db.events).values(film_id=film_id, sequence_number=2, event=b""))
    with pytest.raises(sa.exc.IntegrityError):
        production.fail(film_id, FAILURE)
    with database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE scenes")
    with pytest.raises(sa.exc.OperationalError, match="no such table"):  # SQLite's word for a mistake of ours
        production.fail(film_id, FAILURE)


@pytest.mark.parametrize("error", [LOST, CLOSED, BUSY])
def test_a_step_waits_for_the_database(
    production: Production, store: FilmStore, joiner: Joiner, film_id: str, error: Exception
) -> None:
    joiner.errors = [error, error]
    assert production.wait_rendered(film_id)
    assert store.film(film_id).film.state == pb.Film.STATE_QUEUED


@pytest.mark.parametrize("error", [MISUSED, sa.exc.IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE"))])
def test_a_step_that_asks_wrongly_fails_its_film(
    production: Production, store: FilmStore, joiner: Joiner, film_id: str, error: Exception
) -> None:
    assert not is_database_away(error)
    joiner.errors = [error]
    assert not production.wait_rendered(film_id)
    assert store.film(film_id).film.error.reason == "INTERNAL"


@pytest.mark.postgresql
def test_postgresql_that_hangs_up_is_away_and_one_that_says_no_is_not(postgresql_cluster: Any) -> None:
    database = Database(database_url(postgresql_cluster.new_database(), Path()))
    with pytest.raises(sa.exc.ProgrammingError) as refused, database.reading() as connection:
        connection.exec_driver_sql("SELECT * FROM nothing")
    assert not is_database_away(refused.value)
    with pytest.raises(sa.exc.OperationalError) as hung_up, database.reading() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
    assert is_database_away(hung_up.value)
    database.close()
