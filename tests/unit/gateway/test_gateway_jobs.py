"""Films' workflows on DBOS itself: one that nobody began, and those that a dead gateway left."""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dbos import DBOS
from postgresql_cluster import Cluster

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import jobs as jobs_module
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.jobs import WORKFLOW_VERSION, Jobs
from halfreel_gateway.migrations import migrate
from halfreel_gateway.running import GatewayStoppingError
from halfreel_gateway.store import FilmStore


class Steps:
    """Stands for the production: tells which films are begun, and holds them at that until they are to end."""

    def __init__(self, *, holds: bool) -> None:
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.broken = False
        self.not_ended: list[str] = []
        self.stop = threading.Event()
        self._holds = holds

    def prepare(self, film_id: str) -> None:
        """None: the film has ended, and so does its workflow."""
        self.begun.put(film_id)
        if self.broken:
            raise ValueError("a workflow's own fault")
        if self._holds:
            assert self.stop.wait(20)
            raise GatewayStoppingError

    def next(self) -> str:
        return self.begun.get(timeout=20)

    def fail(self, film_id: str, _: object) -> None:
        """A database that will never store that."""
        self.not_ended.append(film_id)
        raise sa.exc.IntegrityError("UPDATE", {}, sqlite3.IntegrityError("not that"))


class Process:
    """What a gateway process has of workflows. DBOS is one per process: a new one ends that of the one before."""

    def __init__(self, url: str, folder: Path) -> None:
        self.database = Database(database_url(url, folder))
        with self.database.writing() as connection:
            migrate(connection)
        self.store = FilmStore(self.database, lambda *_: None, max_active_count=10)
        self.jobs: Jobs | None = None

    def start(self, executor_id: str, *, holds: bool = False) -> tuple[Jobs, Steps]:
        self.end()
        steps = Steps(holds=holds)
        self.jobs = Jobs(steps, self.store, self.database.url, executor_id)  # type: ignore[arg-type]
        self.jobs.launch(1)
        return self.jobs, steps

    def end(self) -> None:
        if self.jobs is not None:
            self.jobs.close()
        DBOS.destroy(destroy_registry=True)

    def film(self) -> str:
        request_id = f"r{len(self.store.active_film_ids())}"
        return self.store.create(request_id, "an idea", pb.FilmSettings(seed=1), "f", owner="").film_id

    def sql(self, text: str, **values: object) -> None:
        with self.database.writing() as connection:
            connection.execute(sa.text(text), values)


@pytest.fixture
def new_process(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    made: list[Process] = []

    def make(url: str) -> Process:
        made.append(Process(url, tmp_path))
        return made[0]

    yield make
    for process in made:
        process.end()
        process.database.close()


def test_a_film_whose_end_is_refused_holds_no_other_up(new_process: Callable[[str], Process]) -> None:
    process = new_process("")
    jobs, steps = process.start("gateway")
    steps.broken = True
    ruined = process.film()
    jobs.start(ruined)
    assert steps.next() == ruined
    while [workflow.status for workflow in DBOS.list_workflows(workflow_id_prefix=ruined)] != ["ERROR"]:
        time.sleep(0.05)
    process.end()
    waiting = process.film()
    _, steps = process.start("gateway")
    assert steps.next() == waiting
    assert steps.not_ended == [ruined]


def test_a_film_that_was_stored_and_not_begun_is_begun_soon_and_once(
    new_process: Callable[[str], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "_LOOK_EVERY_S", 0.05)
    process = new_process("")
    find, looks, away = process.store.queued_film_ids, threading.Semaphore(0), threading.Event()

    def queued_film_ids() -> list[str]:
        looks.release()
        if away.is_set():
            raise sa.exc.OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error"))
        return find()

    monkeypatch.setattr(process.store, "queued_film_ids", queued_film_ids)
    away.set()
    _, steps = process.start("gateway")
    film_id = process.film()  # and then the database went away
    for _ in range(2):
        assert looks.acquire(timeout=20)
    assert steps.begun.empty()
    away.clear()
    assert steps.next() == film_id
    for _ in range(3):
        assert looks.acquire(timeout=20)
    assert steps.begun.empty()


@pytest.mark.postgresql
def test_a_takeover_tells_whether_it_is_whole(
    new_process: Callable[[str], Process], postgresql_cluster: Cluster
) -> None:
    process = new_process(postgresql_cluster.new_database())
    dead, left = process.start("dead", holds=True)
    films = [process.film() for _ in range(3)]
    for film_id in films:
        dead.start(film_id)
    assert {left.next() for _ in films} == set(films)
    left.stop.set()

    living, steps = process.start("living")
    version = "UPDATE dbos.workflow_status SET application_version = :version WHERE workflow_uuid = :film_id"
    own, newer, older = films
    process.sql(version, film_id=newer, version="films-99")
    process.sql(version, film_id=older, version="films-1")
    assert not living.take_over("dead"), "one is of a newer gateway's, which alone knows it"
    assert {steps.next(), steps.next()} == {own, older}

    # A database that refuses what DBOS writes: it only logs that.
    process.sql(version, film_id=newer, version=WORKFLOW_VERSION)
    process.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON dbos.workflow_status FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    assert not living.take_over("dead"), "nothing could be stored"
    process.sql("DROP TRIGGER refuse ON dbos.workflow_status")
    assert living.take_over("dead")
    assert steps.next() == newer
    assert living.take_over("dead"), "there is nothing left"
    assert steps.begun.empty()
