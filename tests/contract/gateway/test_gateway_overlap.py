"""Scenes are stored as they are written, and rendered at once where both models are in memory."""

from __future__ import annotations

import time

import pytest
from gateway_doubles import Serving
from gateway_process import Gateway

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2

WRITING, QUEUED, RENDERING = pb.Film.STATE_WRITING_SCRIPT, pb.Scene.STATE_QUEUED, pb.Scene.STATE_RENDERING


@pytest.fixture
def killable(own_gateway: Gateway) -> Gateway:
    own_gateway.start()
    return own_gateway


def test_the_first_scene_is_rendered_before_the_last_is_written(gateway: Gateway, llm: Serving) -> None:
    llm.double.behaviours.script("hold_second")
    film_id = gateway.create("overlap", scene_count=3, seed=1).film_id
    early = gateway.until(film_id, lambda film: film.scenes and film.scenes[0].state == pb.Scene.STATE_SUCCEEDED)
    assert early.state == WRITING
    assert early.title == "A film of doubles"
    assert len(early.scenes) == 1
    llm.double.behaviours.let_go.set()
    ended = gateway.ended(film_id)
    assert [scene.index for scene in ended.scenes] == [0, 1, 2]
    assert ended.progress_ratio == 1.0
    told = [event for event in gateway.watch(film_id, 0) if event.sequence_number][1:]
    kinds = [(event.WhichOneof("event"), event.state_changed.state) for event in told]
    assert kinds.index(("scene_changed", 0)) < kinds.index(("state_changed", pb.Film.STATE_RENDERING))
    ratios = [event.state_changed.progress_ratio for event in told if event.HasField("state_changed")]
    assert ratios == sorted(ratios)


def test_models_that_take_turns_get_the_whole_script_first(gateway: Gateway, llm: Serving, video: Serving) -> None:
    video.double.model_state = gpu_pb2.MODEL_STATE_ASLEEP  # on the device of the language model
    llm.double.behaviours.script("hold_second")
    film_id = gateway.create("turns", scene_count=2, seed=1).film_id
    gateway.until(film_id, lambda film: film.scenes)
    time.sleep(1.0)
    film = gateway.get(film_id)
    assert (film.state, [scene.state for scene in film.scenes]) == (WRITING, [QUEUED])
    assert not video.double.behaviours.requests
    llm.double.behaviours.let_go.set()
    gateway.ended(film_id)


@pytest.mark.parametrize("victim", ["gateway", "llm"])
def test_killed_when_a_part_of_the_script_is_stored(killable: Gateway, llm: Serving, victim: str) -> None:
    settings = {"scene_count": 3, "seed": 4}
    undisturbed = killable.ended(killable.create("half a script", **settings).film_id)
    llm.double.behaviours.script("hold_second" if victim == "gateway" else "die_second")
    film_id = killable.create("half a script", **settings).film_id
    if victim == "gateway":
        killable.until(film_id, lambda film: film.scenes and film.scenes[0].state == pb.Scene.STATE_SUCCEEDED)
        killable.kill()
        killable.start()
    ended = killable.ended(film_id)
    assert ended.video.sha256 == undisturbed.video.sha256
    assert sum(scene.attempt_count for scene in ended.scenes) == 3
    numbers = [event.sequence_number for event in killable.watch(film_id, 0)][1:]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_scene_that_is_stored_keeps_its_words(gateway: Gateway, llm: Serving) -> None:
    """The first draft is cut: the second, of another seed, has other words, but these may be at work already."""
    llm.double.behaviours.script("cut")
    film_id = gateway.create("two drafts", scene_count=2, seed=9).film_id
    ended = gateway.ended(film_id)
    drafts = [each for each in llm.double.behaviours.requests if each.request_id.startswith(film_id)]
    assert len(drafts) == 2
    assert drafts[0].seed % 97 != drafts[1].seed % 97
    assert [scene.narration for scene in ended.scenes] == [
        f"Narration {i} {{of}} {drafts[0].seed % 97}" for i in (0, 1)
    ]


def test_a_film_that_fails_in_its_script_ends_what_was_begun(gateway: Gateway, llm: Serving, video: Serving) -> None:
    llm.double.context_token_count = 100_000
    llm.double.behaviours.script("cut", "cut", "cut")
    video.double.behaviours.script("hold")
    film = gateway.ended(gateway.create("begun in vain", scene_count=2).film_id, pb.Film.STATE_FAILED)
    assert film.error.reason == "SCRIPT_INVALID"
    assert {scene.state for scene in film.scenes} == {pb.Scene.STATE_CANCELLED}
    if video.double.behaviours.held.is_set():
        assert video.double.behaviours.cancelled.wait(5)
