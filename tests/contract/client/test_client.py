"""The typed client against a gateway on a real loopback channel, blocking and asyncio."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from opentelemetry import trace

from halfreel_client import (
    AlreadyExists,
    AsyncClient,
    Client,
    DataLoss,
    FailedPrecondition,
    FilmSettings,
    FilmState,
    InvalidArgument,
    NotFound,
    Rejoining,
    ResourceExhausted,
    SceneChanged,
    SceneStep,
    ScriptDelta,
    Snapshot,
    StateChanged,
    Unreachable,
    VideoReady,
    Violation,
)

if TYPE_CHECKING:
    from conftest import Gateway

VIDEO = bytes(range(256)) * 4096


def test_a_film_from_idea_to_file(gateway: Gateway, tmp_path: Path) -> None:
    with Client(gateway.address) as client:
        film = client.create_film("a red circle", FilmSettings(scene_count=2, seed=5))
        assert film.settings == FilmSettings(scene_count=2, seed=5)
        assert len(film.request_id) == 32
        events = [event.what for event in client.watch(film.film_id)]
        film = client.get_film(film.film_id)
        path = client.save_video(film.film_id, tmp_path / "film.mp4")
    assert isinstance(events[0], Snapshot)
    assert events[-1] == StateChanged(FilmState.SUCCEEDED, "Red over blue", 1.0)
    assert "".join(event.text for event in events if isinstance(event, ScriptDelta)).startswith('{"title":')
    steps = [event for event in events if isinstance(event, SceneStep)]
    assert [(step.scene_index, step.step_index) for step in steps] == [(s, i) for s in (0, 1) for i in (1, 2, 3, 4)]
    assert steps[0].remaining_s == pytest.approx(0.3)
    assert film.state is FilmState.SUCCEEDED
    assert film.video is not None
    assert (film.video.frame_count, film.video.duration_s) == (16, 2.0)
    assert [scene.clip is not None for scene in film.scenes] == [True, True]
    assert film.scenes[0].phase_peaks[0].peak.reserved_bytes == 2 << 30
    assert path.read_bytes() == VIDEO
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.mp4"]


async def test_calls_are_part_of_the_trace_they_are_made_in(gateway: Gateway) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(0xAB, 0xCD, is_remote=False, trace_flags=trace.TraceFlags(1)))
    with Client(gateway.address) as client, trace.use_span(span):
        list(client.watch(client.create_film("a red circle").film_id))
    async with AsyncClient(gateway.address) as own:
        with trace.use_span(span):
            film = await own.create_film("a red circle")
            [event async for event in own.watch(film.film_id)]
        await own.create_film("in no span")
    assert gateway.traces == 4 * [f"00-{0xAB:032x}-{0xCD:016x}-01"] + [None]


async def test_a_film_from_idea_to_file_asyncio(gateway: Gateway, tmp_path: Path) -> None:
    async with AsyncClient(gateway.address) as client:
        film = await client.create_film("a red circle")
        events = [event.what async for event in client.watch(film.film_id, after=0)]
        path = await client.save_video(film.film_id, tmp_path / "film.mp4")
        films = [film.film_id async for film in client.films()]
        memory = await client.memory()
    assert isinstance(events[-1], StateChanged)
    assert isinstance(events[-2], VideoReady)
    assert path.read_bytes() == VIDEO
    assert films == [film.film_id]
    assert memory[0].report is not None
    assert memory[0].report.devices[0].device_name == "NVIDIA H200"
    assert (memory[1].report, memory[1].problem) == (None, "did not answer in 2 s")


def test_create_is_tried_again_with_the_same_id(gateway: Gateway) -> None:
    gateway.unavailable_count = 6  # more than the channel tries by itself
    with Client(gateway.address) as client:
        film = client.create_film("a red circle")
    assert len(gateway.creates) == 7
    assert {request.request_id for request in gateway.creates} == {film.request_id}
    assert list(gateway.films) == [film.film_id]


def test_patience_ends(gateway: Gateway) -> None:
    gateway.stop()
    began = time.monotonic()
    with Client(gateway.address, patience_s=1.0) as client, pytest.raises(Unreachable) as caught:
        client.create_film("a red circle")
    assert time.monotonic() - began < 15  # far from the 60 s of a client that is told nothing
    assert gateway.address in caught.value.message
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_films_over_pages(gateway: Gateway) -> None:
    with Client(gateway.address) as client:
        made = [client.create_film(f"idea {number}").film_id for number in range(5)]
        assert [film.film_id for film in client.films(page_size=2)] == made[::-1]


def stored(events: list) -> list[int]:
    return [event.sequence_number for event in events if event.sequence_number and not isinstance(event.what, Snapshot)]


def test_watch_rejoins_after_a_restart(gateway: Gateway) -> None:
    gateway.hold_at = 4
    events = []
    with Client(gateway.address) as client:
        film = client.create_film("a red circle")
        for event in client.watch(film.film_id, after=0):
            events.append(event)
            if event.sequence_number == 4 and not isinstance(event.what, Snapshot) and not gateway.go_on.is_set():
                gateway.stop()
                gateway.go_on.set()
                time.sleep(0.3)  # events are stored while nobody can hear them
                gateway.start()
    assert any(isinstance(event.what, Rejoining) for event in events)
    last = max(item.sequence_number for item in gateway.logs[film.film_id])
    assert stored(events) == list(range(1, last + 1))
    assert gateway.watches[-1].after_sequence_number == 4


async def test_watch_rejoins_after_a_restart_asyncio(gateway: Gateway) -> None:
    gateway.hold_at = 4
    events = []
    async with AsyncClient(gateway.address) as client:
        film = await client.create_film("a red circle")
        async for event in client.watch(film.film_id, after=0):
            events.append(event)
            if event.sequence_number == 4 and not isinstance(event.what, Snapshot) and not gateway.go_on.is_set():
                await asyncio.to_thread(gateway.stop)
                gateway.go_on.set()
                await asyncio.sleep(0.3)
                gateway.start()
    last = max(item.sequence_number for item in gateway.logs[film.film_id])
    assert stored(events) == list(range(1, last + 1))


def test_watch_gives_up_when_the_gateway_stays_away(gateway: Gateway) -> None:
    gateway.hold_at = 1
    with Client(gateway.address, patience_s=0.8) as client:
        film = client.create_film("a red circle")
        with pytest.raises(Unreachable):
            for event in client.watch(film.film_id):
                if isinstance(event.what, Snapshot):
                    gateway.stop()


def test_leaving_a_watch_ends_the_call(gateway: Gateway) -> None:
    gateway.hold_at = 2
    with Client(gateway.address) as client:
        film = client.create_film("a red circle")
        watch = client.watch(film.film_id)
        next(watch)
        watch.close()
        assert client.cancel(film.film_id).state is FilmState.CANCELLED


def test_watch_from_a_number(gateway: Gateway) -> None:
    with Client(gateway.address) as client:
        film = client.create_film("a red circle")
        assert stored(list(client.watch(film.film_id, after=0)))
        again = list(client.watch(film.film_id, after=5))
    assert stored(again)[0] == 6
    assert any(isinstance(event.what, SceneChanged) for event in again)


def finished(client: Client) -> str:
    film = client.create_film("a red circle")
    list(client.watch(film.film_id))
    return film.film_id


def test_save_video_goes_on_after_a_break(gateway: Gateway, tmp_path: Path) -> None:
    with Client(gateway.address) as client:
        film_id = finished(client)
        gateway.break_video_at = 500_000
        path = client.save_video(film_id, tmp_path / "film.mp4")
    assert gateway.reads == [0, 500_000]
    assert path.read_bytes() == VIDEO


def test_save_video_goes_on_in_another_process(gateway: Gateway, tmp_path: Path) -> None:
    with Client(gateway.address) as client:
        film_id = finished(client)
    sha256 = hashlib.sha256(VIDEO).hexdigest()
    (tmp_path / f".film.mp4.{sha256[:16]}.part").write_bytes(VIDEO[:300_000])
    with Client(gateway.address) as client:
        client.save_video(film_id, tmp_path / "film.mp4")
    assert gateway.reads == [300_000]
    assert (tmp_path / "film.mp4").read_bytes() == VIDEO


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * (len(VIDEO) + 1)], ids=["other bytes", "too long"])
def test_save_video_over_wrong_leftovers(gateway: Gateway, tmp_path: Path, left: bytes) -> None:
    with Client(gateway.address) as client:
        film_id = finished(client)
        part = tmp_path / f".film.mp4.{hashlib.sha256(VIDEO).hexdigest()[:16]}.part"
        part.write_bytes(left)
        if len(left) < len(VIDEO):
            with pytest.raises(DataLoss):
                client.save_video(film_id, tmp_path / "film.mp4")
            assert list(tmp_path.iterdir()) == []
        client.save_video(film_id, tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes() == VIDEO


def test_save_video_checks_the_hash_and_keeps_the_old_file(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"the film of yesterday")
    gateway.corrupt = True
    with Client(gateway.address) as client:
        film_id = finished(client)
        with pytest.raises(DataLoss, match="SHA-256"):
            client.save_video(film_id, tmp_path / "film.mp4")
    assert [entry.name for entry in tmp_path.iterdir()] == ["film.mp4"]
    assert (tmp_path / "film.mp4").read_bytes() == b"the film of yesterday"


def test_errors_tell_what_the_server_said(gateway: Gateway) -> None:
    gateway.hold_at = 1
    with Client(gateway.address) as client:
        with pytest.raises(InvalidArgument) as refused:
            client.create_film("")
        assert refused.value.reason == "INVALID_FIELD"
        assert refused.value.violations == (
            Violation("idea", "is empty; say what the film is to show in 1 to 2000 characters"),
        )
        with pytest.raises(ResourceExhausted) as full:
            client.create_film("too much")
        assert (full.value.reason, full.value.retry_after_s) == ("QUEUE_FULL", 1.5)
        with pytest.raises(NotFound, match="nowhere"):
            client.get_film("nowhere")
        with pytest.raises(NotFound):
            next(client.watch("nowhere"))
        client.create_film("one", request_id="same")
        with pytest.raises(AlreadyExists):
            client.create_film("another", request_id="same")
        running = client.create_film("a red circle").film_id
        with pytest.raises(FailedPrecondition) as early:
            client.delete(running)
        assert early.value.reason == "FILM_NOT_ENDED"
        with pytest.raises(FailedPrecondition, match="no video yet"):
            client.save_video(running, "never.mp4")


def test_values_that_fit_no_message_are_refused_before_the_call(gateway: Gateway) -> None:
    with Client(gateway.address) as client:
        with pytest.raises(InvalidArgument, match=r"settings\.width_px.*99999999999"):
            client.create_film("a red circle", FilmSettings(width_px=99999999999))
        with pytest.raises(InvalidArgument, match="UTF-8"):
            client.create_film("a red \udcff circle")
    assert gateway.creates == []


def test_a_proxy_for_the_web_is_not_used(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(gateway.address, patience_s=1) as client:
        assert list(client.films()) == []
