"""WatchFilm: the film first, then every stored event once and in order, however often the watcher comes and goes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from gateway_doubles import Serving
from gateway_process import Gateway, refused

from halfreel.gateway.v1 import gateway_pb2 as pb

STATES = [
    pb.Film.STATE_QUEUED,
    pb.Film.STATE_WRITING_SCRIPT,
    pb.Film.STATE_RENDERING,
    pb.Film.STATE_JOINING,
    pb.Film.STATE_SUCCEEDED,
]


def kind(event: pb.WatchFilmResponse) -> str:
    return event.WhichOneof("event") or ""


def stored(events: list[pb.WatchFilmResponse]) -> list[pb.WatchFilmResponse]:
    return [event for event in events if event.sequence_number and kind(event) != "film"]


def test_a_watcher_sees_all_of_a_film(gateway: Gateway, llm: Serving) -> None:
    llm.double.behaviours.script("hold")
    film = gateway.create("watched", scene_count=2, seed=8)
    watching = gateway.watch(film.film_id, 0)
    first = next(watching)
    llm.double.behaviours.let_go.set()
    events = list(watching)
    assert (kind(first), first.film.film_id) == ("film", film.film_id)
    numbered = stored(events)
    assert [event.sequence_number for event in numbered] == list(range(1, len(numbered) + 1))
    assert [event.state_changed.state for event in numbered if kind(event) == "state_changed"] == STATES
    assert [kind(event) for event in events[-2:]] == ["video_ready", "state_changed"]
    ratios = [event.state_changed.progress_ratio for event in numbered if kind(event) == "state_changed"]
    assert ratios == sorted(ratios)
    assert ratios[-1] == 1.0
    for index in (0, 1):
        seen = [event.scene_changed.state for event in numbered if event.scene_changed.index == index]
        seen = [state for state in seen if state]
        assert seen == [pb.Scene.STATE_QUEUED, pb.Scene.STATE_RENDERING, pb.Scene.STATE_SUCCEEDED]
        steps = [event.scene_step.step_index for event in events if kind(event) == "scene_step"]
        assert steps == [1, 2, 3, 1, 2, 3]
    assert {event.scene_stage.stage for event in events if kind(event) == "scene_stage"} == {"denoise"}
    assert not [event for event in events if kind(event) == "scene_preview"]


def test_the_script_comes_as_it_is_written(gateway: Gateway, llm: Serving) -> None:
    llm.double.behaviours.script("hold")
    film = gateway.create("live script", scene_count=1)
    assert llm.double.behaviours.held.wait(10)
    watching = gateway.watch(film.film_id)
    assert kind(next(watching)) == "film"
    llm.double.behaviours.let_go.set()
    events = list(watching)
    text = "".join(event.script_delta.text for event in events if kind(event) == "script_delta")
    assert text.endswith('"motion":"still"}]}')
    assert all(event.sequence_number == 0 for event in events if kind(event) == "script_delta")


def test_previews_come_to_those_who_ask(gateway: Gateway, llm: Serving) -> None:
    llm.double.behaviours.script("hold")
    film = gateway.create("previewed", scene_count=1)
    asking, other = gateway.watch(film.film_id, preview=True), gateway.watch(film.film_id)
    next(asking), next(other)
    llm.double.behaviours.let_go.set()
    previews = [event.scene_preview for event in asking if kind(event) == "scene_preview"]
    assert [preview.jpeg[:2] for preview in previews] == [b"\xff\xd8"] * 3
    assert not [event for event in other if kind(event) == "scene_preview"]


def test_a_watcher_comes_back_by_number(gateway: Gateway, video: Serving) -> None:
    video.double.behaviours.script("hold")
    film = gateway.create("left and joined again", scene_count=2, seed=9)
    watching = gateway.watch(film.film_id, 0)
    seen = [next(watching) for _ in range(4)]
    last = max(event.sequence_number for event in seen[1:])
    watching.cancel()
    assert video.double.behaviours.held.wait(10)
    again = gateway.watch(film.film_id, last)
    snapshot = next(again)
    assert kind(snapshot) == "film"
    assert snapshot.sequence_number >= last
    video.double.behaviours.let_go.set()
    numbers = [event.sequence_number for event in stored(list(again))]
    assert numbers == list(range(last + 1, last + 1 + len(numbers)))
    everything = stored(list(gateway.watch(film.film_id, 0)))
    assert [event.sequence_number for event in everything] == list(range(1, numbers[-1] + 1))


def test_an_ended_film_is_told_and_the_stream_ends(gateway: Gateway) -> None:
    film = gateway.ended(gateway.create("over", scene_count=1).film_id)
    (only,) = list(gateway.watch(film.film_id))
    assert only.film == film
    last = only.sequence_number
    assert [event.sequence_number for event in gateway.watch(film.film_id, last)] == [last]
    assert len(stored(list(gateway.watch(film.film_id, 0)))) == last
    for number in (-1, last + 1):
        error = refused(lambda number=number: gateway.watch(film.film_id, number))
        assert (error.code, error.violations[0].field) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "after_sequence_number",
        )


def test_cancel_ends_the_watch(gateway: Gateway, video: Serving) -> None:
    video.double.behaviours.script("hold")
    film = gateway.create("cancelled under watch", scene_count=1)
    watching = gateway.watch(film.film_id, 0)
    assert video.double.behaviours.held.wait(10)
    gateway.stub.CancelFilm(pb.CancelFilmRequest(film_id=film.film_id), timeout=5)
    events = list(watching)
    assert [kind(event) for event in events[-2:]] == ["scene_changed", "state_changed"]
    assert events[-1].state_changed.state == pb.Film.STATE_CANCELLED


def watched_s(gateway: Gateway, llm: Serving) -> float:
    """Seconds from the end of the first of three hundred watchers of one film to that of the last."""
    llm.double.behaviours.reset()
    llm.double.behaviours.script("hold")
    film = gateway.create("popular", scene_count=2)
    began, ended, lock = threading.Barrier(301, timeout=60), [], threading.Lock()
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['port']}", options=[("grpc.channel_id", i)]) for i in range(4)
    ]

    def follow(number: int) -> list[int]:
        method = channels[number % 4].unary_stream(
            "/halfreel.gateway.v1.GatewayService/WatchFilm",
            request_serializer=pb.WatchFilmRequest.SerializeToString,
            response_deserializer=pb.WatchFilmResponse.FromString,
        )
        events = method(pb.WatchFilmRequest(film_id=film.film_id, after_sequence_number=0), timeout=60)
        next(events)
        began.wait()
        numbers = [event.sequence_number for event in events if event.sequence_number]
        with lock:
            ended.append(time.monotonic())
        return numbers

    with ThreadPoolExecutor(300) as pool:
        waiting = [pool.submit(follow, number) for number in range(300)]
        began.wait()
        llm.double.behaviours.let_go.set()
        seen = [each.result() for each in waiting]
    assert all(numbers == seen[0] == list(range(1, len(numbers) + 1)) for numbers in seen)
    for channel in channels:
        channel.close()
    return max(ended) - min(ended)


def test_three_hundred_watchers_of_one_film(gateway: Gateway, llm: Serving) -> None:
    took_s = [watched_s(gateway, llm)]
    while min(took_s) >= 1.0 and len(took_s) < 3:  # a busy neighbour is not our slowness
        took_s.append(watched_s(gateway, llm))
    assert min(took_s) < 1.0


@pytest.mark.parametrize("preview", [False, True])
def test_a_reader_that_stops_reading_holds_nothing_up(gateway: Gateway, video: Serving, preview: bool) -> None:
    lazy = gateway.watch(gateway.create("unread", scene_count=2, step_count=100).film_id, 0, preview=preview)
    film_id = next(lazy).film.film_id
    film = gateway.ended(film_id)
    numbers = [event.sequence_number for event in stored(list(lazy))]
    assert numbers == list(range(1, len(numbers) + 1))
    assert film.video.frame_count == 14
