"""Nothing is lost, repeated or left behind: kills, full disks, full queues, damaged files, two gateways."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from gateway_doubles import VIDEO, LlmDouble, Serving, VideoDouble
from gateway_process import Gateway, refused

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import folder_lock

FILM = {"scene_count": 3, "seed": 31}
RESUMED_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory, llm: Serving, video: Serving) -> Iterator[Gateway]:
    """A gateway that tests may kill, as long as they start it again."""
    gateway = Gateway(tmp_path_factory.mktemp("killable"), [llm.address], [video.address])
    gateway.start()
    yield gateway
    gateway.stop()


def resumed_s(killable: Gateway, double: LlmDouble | VideoDouble, part: str) -> float:
    """Seconds from the moment that a gateway killed at work serves again until its film goes on."""
    undisturbed = killable.ended(killable.create("killed", **FILM).film_id)
    double.behaviours.reset()
    double.behaviours.script(*(["hold"] if part == "script" else ["ok", "hold"]))
    film = killable.create("killed", **FILM)
    assert double.behaviours.held.wait(10)
    if part == "scene":
        killable.until(film.film_id, lambda film: film.scenes[1].state == pb.Scene.STATE_RENDERING)
    asked = len(double.behaviours.requests)
    killable.kill()
    killable.start()
    killable.until(film.film_id, lambda film: len(double.behaviours.requests) > asked)
    took_s = time.monotonic() - killable.serving_s
    ended = killable.ended(film.film_id)
    assert ended.video.sha256 == undisturbed.video.sha256
    assert [scene.attempt_count for scene in ended.scenes] == ([1, 1, 1] if part == "script" else [1, 2, 1])
    numbers = [event.sequence_number for event in killable.watch(film.film_id, 0)][1:]
    assert numbers == list(range(1, len(numbers) + 1))
    return took_s


@pytest.mark.parametrize("part", ["script", "scene"])
def test_killed_at_work(killable: Gateway, llm: Serving, video: Serving, part: str) -> None:
    double = (llm if part == "script" else video).double
    took_s = [resumed_s(killable, double, part)]
    if took_s[0] >= RESUMED_WITHIN_S:  # a busy neighbour is not our slowness
        double.behaviours.reset()
        took_s.append(resumed_s(killable, double, part))
    assert min(took_s) < RESUMED_WITHIN_S


def test_killed_again_and_again(killable: Gateway, video: Serving) -> None:
    undisturbed = killable.ended(killable.create("killed often", **FILM).film_id)
    video.double.step_s = 0.05
    film = killable.create("killed often", **FILM)
    kills = 0
    for pause_s in (0.0, 0.2, 0.5, 0.8):
        time.sleep(pause_s)
        killable.kill()
        kills += 1
        killable.start()
    ended = killable.ended(film.film_id)
    assert ended.video.sha256 == undisturbed.video.sha256
    assert sum(scene.attempt_count for scene in ended.scenes) <= 3 + kills
    assert not list((killable.data_dir / "clips").glob(".*"))


def test_a_film_that_was_stored_but_never_started(own_gateway: Gateway) -> None:
    own_gateway.start()
    film = own_gateway.ended(own_gateway.create("stored", **FILM).film_id)
    own_gateway.kill()
    # As if the process had died between storing the film and starting its workflow.
    with sqlite3.connect(own_gateway.data_dir / "gateway.sqlite") as database:
        for table in ("operation_outputs", "workflow_status", "scenes"):
            database.execute(f"DELETE FROM {table}")
        row = pb.Film(film_id=film.film_id, request_id="stored", idea="stored", settings=film.settings)
        row.state = pb.Film.STATE_QUEUED
        database.execute("UPDATE films SET state = ?, film = ?", (row.state, row.SerializeToString()))
    database.close()
    own_gateway.start()
    assert own_gateway.ended(film.film_id).video.sha256 == film.video.sha256


def test_a_stop_leaves_the_film_for_the_next_start(killable: Gateway, video: Serving) -> None:
    video.double.behaviours.script("hold")
    film = killable.create("stopped", **FILM)
    assert video.double.behaviours.held.wait(10)
    watching = killable.watch(film.film_id)
    next(watching)
    killable.process.terminate()
    error = refused(lambda: watching)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert killable.stop() == 0
    killable.start()
    killable.ended(film.film_id)


def test_as_many_films_as_may(own_gateway: Gateway, llm: Serving) -> None:
    own_gateway.start(max_active_film_count=2)
    llm.double.behaviours.script("hold", "hold")
    films = [own_gateway.create(f"film {i}", scene_count=1, request_id=f"film-{i}") for i in range(2)]
    error = refused(lambda: own_gateway.create("one too many"))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert error.retry_after_s
    assert own_gateway.create("film 0", scene_count=1, request_id="film-0").film_id == films[0].film_id
    llm.double.behaviours.let_go.set()
    for film in films:
        own_gateway.ended(film.film_id)
    own_gateway.ended(own_gateway.create("now there is room", scene_count=1).film_id)


def test_films_take_turns_on_two_video_servers(own_gateway: Gateway, video: Serving) -> None:
    (own_gateway.folder / "clips2").mkdir()
    second = Serving(VIDEO, VideoDouble(own_gateway.folder / "clips2"))
    try:
        own_gateway.settings["video_addresses"] = f"{video.address},{second.address}"
        own_gateway.start()
        video.double.step_s = second.double.step_s = 0.1
        films = [own_gateway.create(f"turn {i}", scene_count=4, seed=i).film_id for i in range(2)]
        ended = [own_gateway.ended(film_id) for film_id in films]
        sent = [len(each.double.behaviours.requests) for each in (video, second)]
        assert sum(sent) == 8
        assert min(sent) >= 2, "the scenes were not spread"
        assert (video.double.most_running, second.double.most_running) <= (2, 2)
        first_end, second_start = ended[0].end_time, ended[1].scenes[0]
        assert second_start.attempt_count == 1
        begun = next(e for e in own_gateway.watch(films[1], 0) if e.scene_changed.state == pb.Scene.STATE_RENDERING)
        assert begun.event_time.ToMicroseconds() < first_end.ToMicroseconds(), "the second film waited for the first"
        # One of the two goes down: the other does all.
        second.down()
        own_gateway.ended(own_gateway.create("one left", scene_count=2).film_id)
    finally:
        second.down()


def test_clips_that_disagree_are_encoded_again(killable: Gateway, video: Serving) -> None:
    video.double.behaviours.script("ok", "hold")
    film = killable.create("changed in between", scene_count=2, seed=2)
    assert video.double.behaviours.held.wait(10)
    video.double.crf = "40"  # another header in the stream
    video.double.behaviours.let_go.set()
    ended = killable.ended(film.film_id)
    assert ended.video.frame_count == 14
    assert len(killable.read(film.film_id)) == ended.video.size_bytes


def test_a_clip_that_is_damaged_before_the_join_is_rendered_again(killable: Gateway, video: Serving) -> None:
    video.double.behaviours.script("ok", "hold")
    film = killable.create("bit rot", scene_count=2, seed=1234)
    assert video.double.behaviours.held.wait(10)
    clip = killable.data_dir / "clips" / f"{killable.get(film.film_id).scenes[0].clip.sha256}.mp4"
    clip.write_bytes(clip.read_bytes()[:-9])
    video.double.behaviours.let_go.set()
    ended = killable.ended(film.film_id)
    assert [scene.attempt_count for scene in ended.scenes] == [2, 1]
    states = [e.state_changed.state for e in killable.watch(film.film_id, 0) if e.HasField("state_changed")]
    assert states == sorted(states)


def test_a_disk_that_is_full_in_the_midst_of_a_clip(own_gateway: Gateway, video: Serving) -> None:
    own_gateway.start(max_file_bytes=6 << 20)
    video.double.noisy = True
    large = {"width_px": 512, "height_px": 512, "fps": 30, "scene_seconds": 2}
    film = own_gateway.create("too large", scene_count=1, **large)
    ended = own_gateway.ended(film.film_id, pb.Film.STATE_FAILED)
    assert ended.error.reason == "DISK_FULL"
    assert "free some space" in ended.error.message
    assert int(ended.error.metadata["free_bytes"]) > 0
    assert not list((own_gateway.data_dir / "clips").iterdir())
    video.double.noisy = False
    own_gateway.ended(own_gateway.create("small", scene_count=1).film_id)


def test_a_disk_that_is_nearly_full_takes_no_film_but_those_it_took_before(own_gateway: Gateway) -> None:
    own_gateway.start()
    film = own_gateway.create("accepted", request_id="accepted-once", scene_count=1)
    own_gateway.stop()
    own_gateway.start(min_free_disk_bytes=1 << 60)
    error = refused(own_gateway.create)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
    assert error.metadata["needed_bytes"] == str(1 << 60)
    assert own_gateway.create("accepted", request_id="accepted-once", scene_count=1).film_id == film.film_id
    error = refused(lambda: own_gateway.create("other", request_id="accepted-once"))
    assert error.reason == "REQUEST_ID_REUSED"


def test_what_a_killed_gateway_waited_for_is_told_no_more(own_gateway: Gateway, llm: Serving) -> None:
    own_gateway.start()
    llm.down()
    film = own_gateway.create("waits", scene_count=1)
    own_gateway.until(film.film_id, lambda film: film.waiting_reason)
    own_gateway.kill()
    llm.up()
    llm.double.behaviours.script("hold")
    own_gateway.start()
    assert llm.double.behaviours.held.wait(10)
    assert own_gateway.get(film.film_id).waiting_reason == ""


def test_two_gateways_on_one_database(own_gateway: Gateway, llm: Serving, video: Serving) -> None:
    own_gateway.start()
    (own_gateway.folder / "b").mkdir()
    other = Gateway(own_gateway.folder / "b", [llm.address], [video.address])
    other.settings |= {"data_dir": own_gateway.data_dir, "executor_id": "other"}
    other.start()
    try:
        took_s = []
        for _ in range(3):  # others use this machine as well: the quickest tells
            video.double.behaviours.reset()
            video.double.behaviours.script("hold")
            film = own_gateway.create("seen from both", scene_count=2)
            watching = other.watch(film.film_id, 0)
            assert next(watching).film.film_id == film.film_id
            assert video.double.behaviours.held.wait(10)
            cancelled_s = time.monotonic()
            other.stub.CancelFilm(pb.CancelFilmRequest(film_id=film.film_id), timeout=20)
            assert video.double.behaviours.cancelled.wait(10)
            took_s.append(time.monotonic() - cancelled_s)
            assert list(watching)[-1].state_changed.state == pb.Film.STATE_CANCELLED
        assert min(took_s) < 1
        film = own_gateway.create("watched from the other", scene_count=2)
        states = [e.state_changed.state for e in other.watch(film.film_id, 0) if e.HasField("state_changed")]
        assert states[-1] == pb.Film.STATE_SUCCEEDED
    finally:
        assert other.stop() == 0


def test_a_second_gateway_of_the_same_name_is_refused(tmp_path: Path) -> None:
    lock = folder_lock.take(tmp_path, "gateway")  # as the first one holds it
    environment = os.environ | {"HALFREEL_GATEWAY_DATA_DIR": str(tmp_path), "HALFREEL_GATEWAY_PORT": "0"}
    command = [sys.executable, "-m", "halfreel_gateway"]
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    os.close(lock)
    assert second.returncode == 2
    assert "another gateway" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("name", "value", "said", "code"),
    [
        # Another time it may be there, so a supervisor may try again; of a wrong setting it need not.
        ("HALFREEL_GATEWAY_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "the database can't be opened", 69),
        ("DBOS__CLOUD", "true", "DBOS__CLOUD", 2),
    ],
)
def test_what_keeps_it_from_starting_is_told_in_one_line(
    tmp_path: Path, name: str, value: str, said: str, code: int
) -> None:
    environment = os.environ | {"HALFREEL_GATEWAY_DATA_DIR": str(tmp_path), "HALFREEL_GATEWAY_PORT": "0", name: value}
    command = [sys.executable, "-m", "halfreel_gateway"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
