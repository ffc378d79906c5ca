"""A gateway that is late and taken for dead spoils nothing; a dead one is forgotten when all of it is taken over."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import sqlalchemy as sa
from gateway_doubles import make_clip
from postgresql_cluster import Cluster

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import database as db
from halfreel_gateway import heartbeat as beats
from halfreel_gateway.artifacts import Artifacts
from halfreel_gateway.channels import OPEN
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.failures import FileVanishedError, FilmEndedError, FilmFailedError
from halfreel_gateway.folder_lock import take
from halfreel_gateway.heartbeat import Heartbeat
from halfreel_gateway.joiner import FilmJoiner
from halfreel_gateway.memory import ServersMemory
from halfreel_gateway.migrations import migrate
from halfreel_gateway.running import RunningSteps
from halfreel_gateway.store import FilmStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FilmStore]:
    database = Database(database_url("", tmp_path))
    with database.writing() as connection:
        migrate(connection)
    yield FilmStore(database, lambda *_: None, max_active_count=10)
    database.close()


@pytest.mark.parametrize("end", ["succeeded", "failed", "deleted"])
def test_only_the_file_of_a_film_that_succeeded_stays(store: FilmStore, tmp_path: Path, end: str) -> None:
    artifacts = Artifacts(tmp_path, "late")
    joiner = FilmJoiner(store, RunningSteps(9), artifacts)
    film_id = store.create("r", "an idea", pb.FilmSettings(seed=1), "f", owner="").film_id
    published = artifacts.film(film_id)
    published.write_bytes(b"the film")
    if end == "succeeded":
        joiner._succeed(film_id, pb.Artifact(size_bytes=8), 1.0)  # the one that was quicker
    else:
        with store.change(film_id) as change:
            change.fail(FilmFailedError(grpc.StatusCode.INTERNAL, "INTERNAL", "x").error, None)
    if end == "deleted":
        store.delete(film_id)
    with pytest.raises(FilmEndedError):
        joiner._succeed(film_id, pb.Artifact(size_bytes=8), 2.0)
    assert published.exists() is (end == "succeeded")


def test_a_late_gateway_keeps_its_files_and_a_vanished_one_is_told(tmp_path: Path) -> None:
    late, other = Artifacts(tmp_path, "late"), Artifacts(tmp_path, "other")
    lock = take(tmp_path, "late")
    with late.temporary("clips") as path:
        make_clip(path, SimpleNamespace(seed=1, width_px=96, height_px=64, fps=7, frame_count=7))
        assert other.sweep_temporary("late") == 0
        assert path.exists()
    os.close(lock)
    with pytest.raises(FileVanishedError), late.temporary("clips") as path:
        path.write_bytes(b"a clip")
        assert other.sweep_temporary("late") == 1
        late.publish(path, late.clip("a" * 64))


def test_a_question_to_servers_ends_with_the_loop() -> None:
    memory = ServersMemory(["127.0.0.1:1"], ["127.0.0.1:1"], OPEN)
    answers: list[bool] = []
    asked = threading.Event()

    async def never() -> list[pb.ServerMemory]:
        asked.set()
        await asyncio.sleep(60)
        return []

    async def stop_while_asked() -> threading.Thread:
        memory.start()
        thread = threading.Thread(target=lambda: answers.append(memory.resident_together()))
        thread.start()
        await asyncio.to_thread(asked.wait, 5)
        return thread

    memory.ask = never  # type: ignore[method-assign]
    asyncio.run(stop_while_asked()).join(5)
    assert answers == [False], "cancelled with its loop"
    assert memory.resident_together() is False, "the loop is closed"


@pytest.fixture
def shared(postgresql_cluster: Cluster) -> Iterator[Database]:
    database = Database(database_url(postgresql_cluster.new_database(), Path()))
    with database.writing() as connection:
        migrate(connection)
    yield database
    database.close()


@pytest.mark.postgresql
def test_beats_go_on_through_a_takeover_and_the_dead_stays_until_it_is_whole(
    shared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beats, "BEAT_EVERY_S", 0.1)
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    with shared.writing() as connection:
        connection.execute(sa.insert(db.gateways).values(executor_id="dead", beat_time=long_ago))

    def rows() -> dict[str, datetime]:
        with shared.reading() as connection:
            return {row.executor_id: row.beat_time for row in connection.execute(sa.select(db.gateways))}

    begun, go_on, whole = threading.Event(), threading.Event(), threading.Event()

    def take_over(executor_id: str) -> bool:
        assert executor_id == "dead"
        begun.set()
        assert go_on.wait(20)
        return whole.is_set()

    heart = Heartbeat(shared, "living", take_over)
    heart.start()
    try:
        assert begun.wait(10)
        before = rows()["living"]
        until = time.monotonic() + 10
        while rows()["living"] == before:
            assert time.monotonic() < until, "no beat while it takes over"
            time.sleep(0.05)
        go_on.set()
        begun.clear()
        assert begun.wait(10), "what is left is not looked at again"
        assert "dead" in rows()
        whole.set()
        until = time.monotonic() + 10
        while "dead" in rows():
            assert time.monotonic() < until, "all was taken over"
            time.sleep(0.05)
    finally:
        go_on.set()
        heart.stop()
