"""The gateway's own figures: films, scenes, failures and disk; a database that is slow or away costs nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.metrics import FAILURE_REASONS, DiskCollector, FilmMetrics, FilmsCollector
from halfreel_gateway.migrations import migrate
from halfreel_gateway.store import FilmStore

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(registry: CollectorRegistry) -> Samples:
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return samples(registry)[(name, frozenset(labels.items()))]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FilmStore]:
    database = Database(database_url("", tmp_path))
    with database.writing() as connection:
        migrate(connection)
    yield FilmStore(database, lambda _, __: None, 10)
    database.close()


def scene(index: int) -> pb.Scene:
    return pb.Scene(index=index, state=pb.Scene.STATE_QUEUED)


def test_films_and_the_scenes_of_those_in_the_making_are_counted(store: FilmStore) -> None:
    from halfreel_gateway.change import SceneRecord

    registry = CollectorRegistry()
    registry.register(FilmsCollector(store.counts, store.scene_counts, 5))
    assert value(registry, "halfreel_films", state="queued") == 0
    assert value(registry, "halfreel_scenes", state="waiting") == 0
    film = store.create("one", "idea", pb.FilmSettings(seed=1), "print", owner="")
    store.create("two", "idea", pb.FilmSettings(seed=1), "print", owner="")
    with store.change(film.film_id) as change:
        change.scenes.extend(SceneRecord(scene(index)) for index in range(4))
        change.enter(pb.Film.STATE_RENDERING)
    with store.change(film.film_id) as change:
        change.scenes[0].start_time_us = change.scenes[1].start_time_us = 5
        change.scenes[0].end_time_us = 6
    assert {state: value(registry, "halfreel_films", state=state) for state in ("queued", "rendering")} == {
        "queued": 1,
        "rendering": 1,
    }
    states = {state: value(registry, "halfreel_scenes", state=state) for state in ("waiting", "rendering", "rendered")}
    assert states == {"waiting": 2, "rendering": 1, "rendered": 1}
    store.cancel(film.film_id)
    assert value(registry, "halfreel_scenes", state="waiting") == 0
    assert value(registry, "halfreel_films", state="cancelled") == 1


def test_a_slow_database_is_waited_for_once_and_not_for_long() -> None:
    released, asked = threading.Event(), []

    def slow() -> dict[int, int]:
        asked.append(1)
        released.wait(60)
        return {int(pb.Film.STATE_QUEUED): 3}

    registry = CollectorRegistry()
    registry.register(FilmsCollector(slow, dict))
    for _ in range(5):
        began = time.monotonic()
        assert samples(registry) == {}  # absent, not wrong
        assert time.monotonic() - began < 10  # far from the minute that the answer takes
    assert len(asked) == 1  # questions do not pile up
    released.set()
    deadline = time.monotonic() + 20
    while not (found := samples(registry)):
        assert time.monotonic() < deadline
    assert found[("halfreel_films", frozenset({("state", "queued")}))] == 3


def test_a_database_that_is_away_is_absent_alone(tmp_path: Path) -> None:
    def away() -> dict[int, int]:
        raise sa.exc.OperationalError("select", {}, Exception("gone"))

    registry = CollectorRegistry()
    registry.register(FilmsCollector(away, dict, 5))
    registry.register(DiskCollector(tmp_path, 1000))
    assert {name for name, _ in samples(registry)} == {
        "halfreel_artifact_disk_total_bytes",
        "halfreel_artifact_disk_free_bytes",
        "halfreel_artifact_disk_min_free_bytes",
    }


def test_a_disk_that_is_gone_is_absent(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(DiskCollector(tmp_path / "gone", 1000))
    assert samples(registry) == {}


def entered(state: pb.Film.State.ValueType) -> pb.WatchFilmResponse:
    return pb.WatchFilmResponse(state_changed=pb.WatchFilmResponse.StateChanged(state=state))


def test_ends_of_films_are_counted_by_outcome_and_reason() -> None:
    registry = CollectorRegistry()
    metrics = FilmMetrics(registry)
    before = samples(registry).keys()
    for reason in ("DISK_FULL", "DISK_FULL", *(f"reason-{number}" for number in range(100))):
        failed = pb.WatchFilmResponse(failed=pb.FilmError(reason=reason))
        metrics.take(reason, [entered(pb.Film.STATE_QUEUED)])
        metrics.take(reason, [failed, entered(pb.Film.STATE_FAILED)])
    metrics.take("interrupted", [entered(pb.Film.STATE_SUCCEEDED)])
    assert value(registry, "halfreel_films_failed_total", reason="DISK_FULL") == 2
    assert value(registry, "halfreel_films_failed_total", reason="OTHER") == 100
    assert value(registry, "halfreel_films_ended_total", outcome="failed") == 102
    assert value(registry, "halfreel_film_duration_seconds_count", outcome="failed") == 102
    assert value(registry, "halfreel_films_ended_total", outcome="succeeded") == 1
    assert value(registry, "halfreel_film_duration_seconds_count", outcome="succeeded") == 0
    assert {key for key in samples(registry) if "created" not in key[0]} == {
        key for key in before if "created" not in key[0]
    }
    assert len(FAILURE_REASONS) == len(set(FAILURE_REASONS))
