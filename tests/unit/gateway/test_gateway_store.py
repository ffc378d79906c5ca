"""The store: films, events without gaps, request ids, pages; all on a real SQLite file."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import pages
from halfreel_gateway.change import SceneRecord
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.failures import FilmEndedError, FilmFailedError
from halfreel_gateway.migrations import migrate
from halfreel_gateway.pages import Position
from halfreel_gateway.store import FilmStore
from halfreel_runtime.errors import AlreadyExists, FailedPrecondition, NotFound, QueueFull


class Told:
    """What the store published, by film."""

    def __init__(self) -> None:
        self.events: dict[str, list[pb.WatchFilmResponse]] = {}

    def __call__(self, film_id: str, events: Any) -> None:
        self.events.setdefault(film_id, []).extend(events)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(tmp_path: Path, told: Told) -> Iterator[FilmStore]:
    database = Database(database_url("", tmp_path))
    with database.writing() as connection:
        migrate(connection)
    yield FilmStore(database, told, max_active_count=1000)
    database.close()


def create(store: FilmStore, request_id: str = "r", fingerprint: str = "f", owner: str = "") -> pb.Film:
    return store.create(request_id, "an idea", pb.FilmSettings(seed=1), fingerprint, owner=owner)


def write(store: FilmStore, film_id: str, scene_count: int = 2) -> None:
    with store.change(film_id) as change:
        for index in range(scene_count):
            scene = pb.Scene(index=index, state=pb.Scene.STATE_QUEUED, narration=f"n{index}")
            change.scenes.append(SceneRecord(scene))
        change.enter(pb.Film.STATE_RENDERING)
        for index in range(scene_count):
            change.tell_scene(index)


def clip(sha256: str) -> pb.Artifact:
    return pb.Artifact(sha256=sha256, size_bytes=1)


def test_a_film_comes_back_as_it_was_stored(store: FilmStore) -> None:
    film = create(store)
    assert store.film(film.film_id).film == film
    assert store.film(film.film_id).last_sequence_number == 1
    write(store, film.film_id)
    with store.change(film.film_id) as change:
        change.scenes[1].begin()
        change.scenes[1].succeed(clip("b" * 64))
        change.tell_scene(1)
    read = store.film(film.film_id).film
    assert [scene.narration for scene in read.scenes] == ["n0", "n1"]
    assert read.scenes[1].clip.sha256 == "b" * 64
    assert read.progress_ratio == pytest.approx(0.1 + 0.85 / 2)


def test_what_is_published_is_what_is_stored(store: FilmStore, told: Told) -> None:
    film_id = create(store).film_id
    write(store, film_id)
    store.cancel(film_id)
    assert told.events[film_id] == store.events(film_id, 0)
    assert [event.sequence_number for event in store.events(film_id, 0)] == [1, 2, 3, 4, 5, 6, 7]
    assert [event.sequence_number for event in store.events(film_id, 5)] == [6, 7]
    assert store.film(film_id).last_sequence_number == 7


def test_a_change_that_fails_leaves_nothing(store: FilmStore, told: Told) -> None:
    film_id = create(store).film_id
    with pytest.raises(ZeroDivisionError), store.change(film_id) as change:
        change.enter(pb.Film.STATE_JOINING)
        raise ZeroDivisionError
    assert store.film(film_id).film.state == pb.Film.STATE_QUEUED
    assert len(store.events(film_id, 0)) == len(told.events[film_id]) == 1


def test_events_of_many_threads_have_no_gaps(store: FilmStore) -> None:
    film_id = create(store).film_id
    write(store, film_id, scene_count=8)

    def work(index: int) -> None:
        for _ in range(5):
            with store.change(film_id) as change:
                change.scenes[index].begin()
                change.tell_scene(index)
            store.raise_scene_ratio(film_id, index, random.random())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    numbers = [event.sequence_number for event in store.events(film_id, 0)]
    assert numbers == list(range(1, 10 + 40 + 1))
    assert {scene.attempt_count for scene in store.film(film_id).film.scenes} == {5}


def test_progress_only_grows(store: FilmStore) -> None:
    film_id = create(store).film_id
    write(store, film_id, scene_count=1)
    seen = []
    for ratio in (0.5, 0.2, 0.7, 0.1):
        store.raise_scene_ratio(film_id, 0, ratio)
        with store.change(film_id) as change:
            change.tell_scene(0)
        seen.append(store.film(film_id).film.progress_ratio)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(0.1 + 0.85 * 0.7)


def test_a_request_id_is_one_film(store: FilmStore) -> None:
    first = create(store, "once")
    assert create(store, "once").film_id == first.film_id
    with pytest.raises(AlreadyExists) as refused:
        create(store, "once", fingerprint="other")
    assert refused.value.reason == "REQUEST_ID_REUSED"


def test_one_request_from_many_threads_is_one_film(store: FilmStore) -> None:
    start = threading.Barrier(8)

    def ask(_: int) -> str:
        start.wait()
        return create(store, "at once").film_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert store.counts() == {pb.Film.STATE_QUEUED: 1}


@pytest.mark.parametrize("ending", ["cancel", "fail", "succeed"])
def test_an_ended_film_does_not_change(store: FilmStore, ending: str) -> None:
    film_id = create(store).film_id
    write(store, film_id)
    with store.change(film_id) as change:
        if ending == "fail":
            error = FilmFailedError(grpc.StatusCode.INTERNAL, "X", "it failed").error
            change.fail(error, failed_scene=1)
        elif ending == "succeed":
            change.succeed(clip("c" * 64))
        else:
            change.cancel()
    before = store.film(film_id)
    with pytest.raises(FilmEndedError), store.change(film_id):
        pytest.fail("an ended film was opened for change")
    assert store.cancel(film_id) == before.film
    store.set_waiting(film_id, "late")
    assert store.film(film_id) == before
    assert before.film.HasField("end_time")
    if ending == "fail":
        assert [scene.state for scene in before.film.scenes] == [pb.Scene.STATE_CANCELLED, pb.Scene.STATE_FAILED]
        assert before.film.scenes[1].error == before.film.error


def test_going_on_ends_the_waiting(store: FilmStore) -> None:
    film_id = create(store).film_id
    store.set_waiting(film_id, "no video server answers")
    assert store.film(film_id).film.waiting_reason == "no video server answers"
    write(store, film_id)
    assert store.film(film_id).film.waiting_reason == ""


def test_as_many_active_films_as_may(tmp_path: Path, told: Told) -> None:
    database = Database(database_url("", tmp_path))
    with database.writing() as connection:
        migrate(connection)
    store = FilmStore(database, told, max_active_count=2)
    first = create(store, "1")
    create(store, "2")
    with pytest.raises(QueueFull) as refused:
        create(store, "3")
    assert refused.value.metadata == {"active_film_count": "2", "max_active_film_count": "2"}
    assert refused.value.retry_after_s
    assert create(store, "1").film_id == first.film_id
    store.cancel(first.film_id)
    create(store, "3")
    assert len(store.active_film_ids()) == 2
    database.close()


def test_deleting(store: FilmStore) -> None:
    films = [create(store, name).film_id for name in ("a", "b")]
    for film_id, own in zip(films, ("1" * 64, "2" * 64), strict=True):
        write(store, film_id)
        with store.change(film_id) as change:
            change.scenes[0].succeed(clip("a" * 64))
            change.scenes[1].succeed(clip(own))
    with pytest.raises(FailedPrecondition):
        store.delete(films[0])
    for film_id in films:
        store.cancel(film_id)
    assert store.delete(films[0]) == ["1" * 64]
    assert store.uses_clip("a" * 64)
    assert store.events(films[0], 0) == []
    with pytest.raises(NotFound):
        store.film(films[0])
    with pytest.raises(NotFound):
        store.delete(films[0])
    assert set(store.delete(films[1])) == {"a" * 64, "2" * 64}


def test_pages_are_complete_while_films_are_added(store: FilmStore) -> None:
    made = [create(store, str(i)).film_id for i in range(25)]
    listed: list[str] = []
    position: Position | None = None
    while page := store.films(4, position, owner=None):
        listed += [film.film_id for film in page]
        position = pages.decode(pages.encode(Position(page[-1].create_time.ToMicroseconds(), page[-1].film_id)))
        create(store, f"later {len(listed)}")
    assert listed == made[::-1]


@pytest.mark.parametrize("token", ["", "x", "AAAA", "é", "a" * 10_000, "bm90IG91cnM="])
def test_a_foreign_token_is_noticed(token: str) -> None:
    assert pages.decode(token) is None


def test_a_changed_token_is_noticed() -> None:
    token = pages.encode(Position(1_700_000_000_000_000, "0" * 32))
    assert pages.decode(token) == Position(1_700_000_000_000_000, "0" * 32)
    for place in range(len(token)):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        assert pages.decode(changed) is None


def test_a_crash_between_commits_keeps_what_was_committed(tmp_path: Path, told: Told) -> None:
    for round_number in range(3):
        database = Database(database_url("", tmp_path))
        with database.writing() as connection:
            migrate(connection)
        store = FilmStore(database, told, max_active_count=1000)
        create(store, str(round_number))
        assert store.counts() == {pb.Film.STATE_QUEUED: round_number + 1}
        with database.reading() as connection:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
            }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2}
        database.close()


def test_a_writer_waits_for_another(store: FilmStore) -> None:
    film_id = create(store).film_id
    entered = threading.Event()

    def slow() -> None:
        with store.change(film_id) as change:
            entered.set()
            time.sleep(0.3)
            change.enter(pb.Film.STATE_WRITING_SCRIPT)

    thread = threading.Thread(target=slow)
    thread.start()
    entered.wait()
    assert store.film(film_id).film.state == pb.Film.STATE_QUEUED, "a reader must not wait for a writer"
    with store.change(film_id) as change:
        assert change.film.state == pb.Film.STATE_WRITING_SCRIPT
    thread.join()


@pytest.mark.parametrize("url", ["mysql://x/y", "not a url", "oracle://"])
def test_other_databases_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="database_url"):
        database_url(url, tmp_path)


def test_the_driver_of_postgresql(tmp_path: Path) -> None:
    for scheme in ("postgres", "postgresql", "postgresql+psycopg2"):
        assert database_url(f"{scheme}://u@h/n", tmp_path).drivername == "postgresql+psycopg"


def test_a_page_fits_into_a_message() -> None:
    films = [pb.Film(film_id=f"{i:032x}", idea="🎬" * 2000) for i in range(501)]
    listed: list[pb.Film] = []
    while films:
        page = pages.page(films, 500)
        assert page.ByteSize() < 4 << 20
        assert page.films
        listed += page.films
        films = films[len(page.films) :]
        position = pages.decode(page.next_page_token) if films else None
        assert (position.film_id if position else "") == (listed[-1].film_id if films else "")
        assert bool(page.next_page_token) == bool(films)
    assert len(listed) == 501


def test_films_of_two_owners_are_apart(store: FilmStore) -> None:
    of_anna, of_berta, of_nobody = (create(store, "same", owner, owner) for owner in ("anna", "berta", ""))
    assert len({of_anna.film_id, of_berta.film_id, of_nobody.film_id}) == 3
    assert create(store, "same", "anna", "anna").film_id == of_anna.film_id
    assert [film.film_id for film in store.films(9, None, owner="anna")] == [of_anna.film_id]
    assert len(store.films(9, None, owner=None)) == 3
    store.check_owner(of_anna.film_id, "anna")
    for film_id, owner in (
        (of_anna.film_id, "berta"),
        (of_anna.film_id, ""),
        (of_nobody.film_id, "anna"),
        ("0" * 32, ""),
    ):
        with pytest.raises(NotFound) as raised:
            store.check_owner(film_id, owner)
        assert raised.value.reason == "FILM_NOT_FOUND"
