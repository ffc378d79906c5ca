"""The buffer of one watcher, and the hub that fills many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.hub import Hub
from halfreel_gateway.migrations import migrate
from halfreel_gateway.store import FilmStore
from halfreel_gateway.watch import watch
from halfreel_gateway.watch_buffer import MAX_COUNT, MERGE_BEYOND_COUNT, WatchBuffer
from halfreel_runtime.errors import NotFound, SlowReader

Event = pb.WatchFilmResponse


def step(index: int, scene: int = 0) -> Event:
    return Event(scene_step=Event.SceneStep(scene_index=scene, step_index=index, step_count=1000))


def delta(text: str, attempt: int = 1) -> Event:
    return Event(script_delta=Event.ScriptDelta(text=text, attempt=attempt))


def stored(number: int) -> Event:
    return Event(sequence_number=number, scene_changed=pb.Scene(index=number))


async def drain(buffer: WatchBuffer) -> list[Event]:
    events = []
    while True:
        try:
            events.append(await asyncio.wait_for(buffer.get(), 0.05))
        except TimeoutError:
            return events


async def test_a_reader_in_time_gets_everything_in_order() -> None:
    buffer = WatchBuffer()
    sent = [step(1), stored(1), step(2), Event(waiting=Event.Waiting(reason="x")), stored(2)]
    for event in sent:
        buffer.put(event)
    assert await drain(buffer) == sent


async def test_unread_text_is_one_event() -> None:
    buffer = WatchBuffer()
    for text in "abc":
        buffer.put(delta(text))
    buffer.put(delta("d", attempt=2))
    told = [(event.script_delta.attempt, event.script_delta.text) for event in await drain(buffer)]
    assert told == [(1, "abc"), (2, "d")]


async def test_a_slow_reader_loses_old_steps_and_no_stored_event() -> None:
    buffer = WatchBuffer()
    for number in range(1, 401):
        buffer.put(stored(number))
        for index in range(5):
            buffer.put(step(number * 5 + index, scene=0))
    events = await drain(buffer)
    numbers = [event.sequence_number for event in events if event.sequence_number]
    steps = [event.scene_step.step_index for event in events if event.HasField("scene_step")]
    assert numbers == list(range(1, 401))
    assert len(events) <= 400 + MERGE_BEYOND_COUNT
    assert steps == sorted(steps)
    assert steps[-1] == 400 * 5 + 4


async def test_a_reader_that_never_reads_is_let_go() -> None:
    buffer = WatchBuffer()
    for number in range(1, MAX_COUNT + 2):
        buffer.put(stored(number))
    with pytest.raises(SlowReader):
        await buffer.get()


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(database_url("", tmp_path))
    with database.writing() as connection:
        migrate(connection)
    yield database
    database.close()


async def collect(hub: Hub, store: FilmStore, film_id: str, after: int | None = 0) -> list[int]:
    return [event.sequence_number async for event in watch(hub, store, film_id, after, preview=False)]


def make(store: FilmStore) -> str:
    return store.create("r", "idea", pb.FilmSettings(seed=1), "f", owner="").film_id


async def test_a_thousand_watchers_ask_the_database_together(hub: Hub, database: Database) -> None:
    store = FilmStore(database, hub.publish, 10)
    asked = {"events": 0, "positions": 0}
    for name in asked:
        original = getattr(store, name)

        def counted(*arguments: object, name: str = name, original: object = original) -> object:
            asked[name] += 1
            return original(*arguments)  # type: ignore[operator]

        setattr(store, name, counted)
    hub.start(store)
    film_id = make(store)
    attached = asyncio.Semaphore(0)

    async def follow() -> list[int]:
        numbers = []
        async for event in watch(hub, store, film_id, None, preview=False):
            numbers.append(event.sequence_number)
            attached.release()
        return numbers

    watchers = [asyncio.create_task(follow()) for _ in range(1000)]
    for _ in watchers:
        await attached.acquire()
    asked["positions"] = 0
    began_s = time.monotonic()
    with store.change(film_id) as change:
        change.enter(pb.Film.STATE_WRITING_SCRIPT)
    await asyncio.to_thread(store.cancel, film_id)
    seen = await asyncio.wait_for(asyncio.gather(*watchers), 60)
    assert time.monotonic() - began_s < 10  # together, rather than one after the other
    assert all(numbers == [1, 2, 3] for numbers in seen)
    assert asked["events"] <= 1
    assert asked["positions"] <= 5
    await hub.stop()
    assert not hub._feeds


async def test_events_of_another_gateway_are_found(hub: Hub, database: Database) -> None:
    here, there = FilmStore(database, hub.publish, 10), FilmStore(database, lambda *_: None, 10)
    hub.start(here)
    film_id = make(there)
    watching = asyncio.create_task(collect(hub, here, film_id))
    await asyncio.sleep(0.2)
    with there.change(film_id) as change:
        change.enter(pb.Film.STATE_WRITING_SCRIPT)
    there.cancel(film_id)
    assert await asyncio.wait_for(watching, 20) == [1, 1, 2, 3]
    await hub.stop()


async def test_events_told_in_the_wrong_order_come_in_the_right_one(hub: Hub, database: Database) -> None:
    held: list[tuple[str, list[Event]]] = []
    here = FilmStore(database, lambda film_id, events: held.append((film_id, list(events))), 10)
    hub.start(here)
    film_id = make(here)
    watching = asyncio.create_task(collect(hub, here, film_id))
    await asyncio.sleep(0.2)
    for state in (pb.Film.STATE_WRITING_SCRIPT, pb.Film.STATE_RENDERING):
        with here.change(film_id) as change:
            change.enter(state)
    here.cancel(film_id)
    for told in reversed(held):
        hub.publish(*told)
    assert await asyncio.wait_for(watching, 20) == [1, 1, 2, 3, 4]
    await hub.stop()


async def test_a_film_deleted_under_watch_ends_the_watch(hub: Hub, database: Database) -> None:
    here, there = FilmStore(database, hub.publish, 10), FilmStore(database, lambda *_: None, 10)
    hub.start(here)
    film_id = make(there)
    watching = asyncio.create_task(collect(hub, here, film_id))
    await asyncio.sleep(0.1)
    there.cancel(film_id)
    there.delete(film_id)
    with pytest.raises(NotFound):
        await asyncio.wait_for(watching, 20)
    await hub.stop()
