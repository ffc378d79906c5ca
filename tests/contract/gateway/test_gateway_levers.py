"""What decides a clip's bytes is stored by the first plan, and sent again with every retry."""

from __future__ import annotations

import grpc
import pytest
from gateway_doubles import Serving
from gateway_process import Gateway, refused

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2

CHUNK = 4


def sent(video: Serving, film: pb.Film) -> list[object]:
    return [each for each in video.double.behaviours.requests if each.request_id.startswith(film.film_id)]


def test_the_levers_of_the_first_plan_are_used_again(gateway: Gateway, video: Serving) -> None:
    video.double.behaviours.script("plan_die", "plan")
    film = gateway.ended(gateway.create("levers", scene_count=1, seed=1).film_id)
    first, second = sent(video, film)
    assert not first.HasField("levers")
    assert second.levers.decode_chunk_frame_count == CHUNK
    (scene,) = film.scenes
    assert scene.levers == second.levers
    assert list(scene.rungs) == ["decode_chunk_2"]
    assert scene.attempt_count == 2


def test_a_server_without_plans_tells_its_levers_at_the_end(gateway: Gateway, video: Serving) -> None:
    film = gateway.ended(gateway.create("no plan", scene_count=1).film_id)
    assert film.scenes[0].levers.decode_chunk_frame_count == CHUNK
    assert not film.scenes[0].HasField("variant")


def test_a_cheaper_form_is_told_and_kept(gateway: Gateway, video: Serving) -> None:
    video.double.behaviours.script("plan_smaller_die", "plan")
    film = gateway.create("cheaper", scene_count=1, width_px=128, height_px=128, allow_cheaper=True)
    film = gateway.ended(film.film_id)
    first, second = sent(video, film)
    assert first.allow_cheaper
    assert (first.width_px, second.width_px, second.height_px) == (128, 64, 64)
    (scene,) = film.scenes
    assert (scene.variant.width_px, scene.clip.width_px, film.video.height_px) == (64, 64, 64)
    assert not scene.variant.HasField("plan")


def test_the_profile_goes_to_the_video_server(gateway: Gateway, video: Serving) -> None:
    film = gateway.ended(gateway.create("saver", scene_count=1, profile="MEMORY_PROFILE_SAVER").film_id)
    (request,) = sent(video, film)
    assert request.profile == gpu_pb2.MEMORY_PROFILE_SAVER
    assert not request.allow_cheaper
    error = refused(lambda: gateway.create("no profile", profile=99))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert "settings.profile is 99; it must be one of MEMORY_PROFILE_UNSPECIFIED, " in error.message


@pytest.mark.parametrize("allow_cheaper", [False, True])
def test_a_plan_that_is_refused_is_final(gateway: Gateway, video: Serving, allow_cheaper: bool) -> None:
    video.double.behaviours.script("refused")
    film = gateway.create("too much", scene_count=1, allow_cheaper=allow_cheaper)
    film = gateway.ended(film.film_id, pb.Film.STATE_FAILED)
    assert (film.error.code, film.error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "PLAN_REFUSED")
    assert film.error.metadata == {"needed_bytes": "9", "free_bytes": "5", "suggested_width_px": "64"}
    assert len(sent(video, film)) == 1
