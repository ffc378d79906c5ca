"""Model servers that are down, slow, full, wrong or broken: the film waits, tries again, or fails and says why."""

from __future__ import annotations

import json
import time

import grpc
import pytest
from gateway_doubles import Serving
from gateway_process import Gateway

from halfreel.gateway.v1 import gateway_pb2 as pb

FAILED = pb.Film.STATE_FAILED


def failed(gateway: Gateway, film: pb.Film) -> pb.FilmError:
    """The film's error, which the last events tell too."""
    ended = gateway.ended(film.film_id, FAILED)
    events = list(gateway.watch(film.film_id, 0))
    assert events[-2].failed == ended.error
    assert events[-1].state_changed.state == FAILED
    assert ended.waiting_reason == ""
    for secret in ("127.0.0.1", "/", "Traceback"):
        assert secret not in ended.error.message
    return ended.error


@pytest.mark.parametrize("answer", ["nonsense", "empty", "blank", "cut"])
def test_an_answer_that_is_no_script_is_asked_for_again(gateway: Gateway, llm: Serving, answer: str) -> None:
    llm.double.behaviours.script(answer)
    film = gateway.ended(gateway.create("patience", scene_count=1, seed=1).film_id)
    asked = [request for request in llm.double.behaviours.requests if "patience" in request.messages[1].content]
    assert len({request.seed for request in asked}) == 2
    assert film.title


@pytest.mark.parametrize("answer", ["nonsense", "empty", "blank", "cut"])
def test_a_model_that_never_writes_a_script(gateway: Gateway, llm: Serving, answer: str) -> None:
    llm.double.context_token_count = 100_000
    llm.double.behaviours.script(*[answer] * 3)
    error = failed(gateway, gateway.create("hopeless", scene_count=1))
    assert error.reason == "SCRIPT_INVALID"
    assert "another seed" in error.message
    assert len(llm.double.behaviours.requests) == 3


def test_an_answer_that_is_cut_is_asked_for_shorter(gateway: Gateway, llm: Serving) -> None:
    llm.double.context_token_count = 100_000
    llm.double.behaviours.script("cut", "cut")
    gateway.ended(gateway.create("shorter", scene_count=1).film_id)
    longest = []
    for request in llm.double.behaviours.requests:
        scene = json.loads(request.json_schema)["properties"]["scenes"]["items"]
        longest.append(scene["properties"]["picture"]["maxLength"])
    assert longest == [160, 80, 40]


def test_a_small_context_gets_a_short_script(gateway: Gateway, llm: Serving) -> None:
    llm.double.context_token_count = 700
    film = gateway.ended(gateway.create("small", scene_count=2).film_id)
    assert film.title
    last = llm.double.behaviours.requests[-1]
    prompt = sum(len(message.content) for message in last.messages)
    assert prompt + last.max_output_token_count <= 700
    scene = json.loads(last.json_schema)["properties"]["scenes"]["items"]
    assert 16 <= scene["properties"]["picture"]["maxLength"] < 160


def test_a_context_without_room_for_a_script(gateway: Gateway, llm: Serving) -> None:
    llm.double.context_token_count = 450
    error = failed(gateway, gateway.create("too small", scene_count=8))
    assert error.reason == "PROMPT_TOO_LONG"
    assert "fewer scenes" in error.message


def goes_on_s(gateway: Gateway, server: Serving, name: str) -> float:
    """Seconds that a film takes to its end once the server is back that it waits for."""
    server.down()
    film = gateway.create("waits", scene_count=1)
    waiting = gateway.until(film.film_id, lambda film: film.waiting_reason)
    assert name in waiting.waiting_reason
    watching = gateway.watch(film.film_id)
    assert next(watching).film.waiting_reason == waiting.waiting_reason
    time.sleep(1)
    server.up()
    back_s = time.monotonic()
    ended = gateway.ended(film.film_id)
    took_s = time.monotonic() - back_s
    assert ended.waiting_reason == ""
    told = [event.waiting.reason for event in watching if event.WhichOneof("event") == "waiting"]
    assert told[-1] == ""
    return took_s


@pytest.mark.parametrize("name", ["language model", "video"])
def test_a_server_that_is_down(gateway: Gateway, llm: Serving, video: Serving, name: str) -> None:
    server = llm if name == "language model" else video
    took_s = [goes_on_s(gateway, server, name)]
    if took_s[0] >= 5:  # a busy neighbour is not our slowness
        took_s.append(goes_on_s(gateway, server, name))
    assert min(took_s) < 5


@pytest.mark.parametrize("part", ["llm", "video"])
@pytest.mark.parametrize("fault", ["die", "gone", "queue_full", "internal"])
def test_a_passing_fault(gateway: Gateway, llm: Serving, video: Serving, part: str, fault: str) -> None:
    behaviours = {"llm": llm, "video": video}[part].double.behaviours
    behaviours.script(fault)
    film = gateway.ended(gateway.create("again", scene_count=1, seed=6).film_id)
    requests = [request.seed for request in behaviours.requests]
    assert len(requests) >= 2
    assert len(set(requests)) == 1, "another seed would give another film"
    assert film.scenes[0].attempt_count == (2 if (part, fault) == ("video", "die") else 1)


@pytest.mark.parametrize("part", ["llm", "video"])
def test_a_request_that_the_server_refuses_is_not_sent_again(
    gateway: Gateway, llm: Serving, video: Serving, part: str
) -> None:
    behaviours = {"llm": llm, "video": video}[part].double.behaviours
    behaviours.script("invalid")
    error = failed(gateway, gateway.create("refused", scene_count=1))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "INVALID_FIELD")
    assert error.message == "step_count is 99; it must be between 1 and 9."
    assert len(behaviours.requests) == 1


@pytest.mark.parametrize("part", ["llm", "video"])
def test_a_fault_that_does_not_pass(gateway: Gateway, llm: Serving, video: Serving, part: str) -> None:
    behaviours = {"llm": llm, "video": video}[part].double.behaviours
    behaviours.script(*["internal"] * 3)
    error = failed(gateway, gateway.create("internal", scene_count=1))
    assert error.reason == "INTERNAL"
    assert len(behaviours.requests) == 3


def test_a_status_of_a_proxy_is_not_passed_on(gateway: Gateway, video: Serving) -> None:
    video.double.behaviours.script("proxy")
    error = failed(gateway, gateway.create("proxied", scene_count=1))
    assert error.reason == "PERMISSION_DENIED"
    assert "secret" not in error.message


@pytest.mark.parametrize("part", ["llm", "video"])
def test_a_server_that_falls_silent_is_asked_anew(gateway: Gateway, llm: Serving, video: Serving, part: str) -> None:
    behaviours = {"llm": llm, "video": video}[part].double.behaviours
    behaviours.script("hold")
    gateway.ended(gateway.create("silent once", scene_count=1).film_id)
    assert behaviours.cancelled.wait(10), "the silent call was not cancelled"


def test_a_server_that_is_always_silent(gateway: Gateway, video: Serving) -> None:
    video.double.behaviours.script(*["hold"] * 3)
    film = gateway.create("silent", scene_count=1)
    error = failed(gateway, film)
    assert error.reason == "SERVER_STALLED"
    scene = gateway.get(film.film_id).scenes[0]
    assert (scene.state, scene.error.reason, scene.attempt_count) == (pb.Scene.STATE_FAILED, "SERVER_STALLED", 3)


@pytest.mark.parametrize("damage", ["corrupt", "junk", "gap", "unfinished"])
def test_a_clip_that_comes_damaged(gateway: Gateway, video: Serving, damage: str) -> None:
    video.double.behaviours.script(damage, damage)
    film = gateway.ended(gateway.create("damaged twice", scene_count=1).film_id)
    assert film.scenes[0].attempt_count == 3
    video.double.behaviours.script(*[damage] * 3)
    film = gateway.create("damaged", scene_count=2)
    error = failed(gateway, film)
    assert error.reason == "CLIP_CORRUPT"
    states = [scene.state for scene in gateway.get(film.film_id).scenes]
    assert states == [pb.Scene.STATE_FAILED, pb.Scene.STATE_CANCELLED]
    assert not list((gateway.data_dir / "clips").glob(".*"))


def test_settings_that_the_model_refuses_once_it_is_known(own_gateway: Gateway, video: Serving) -> None:
    video.down()
    own_gateway.start()
    film = own_gateway.create("too long", scene_count=1, scene_seconds=30)
    video.up()
    error = failed(own_gateway, film)
    assert (error.reason, "70 frames" in error.message) == ("INVALID_FIELD", True)
    assert "settings.scene_seconds is 30" in error.message
