"""A film of one shot: each scene starts from the last frame before; and what of quality is given for time."""

from __future__ import annotations

import hashlib
import io

import grpc
import numpy as np
import pytest
from gateway_doubles import Serving
from gateway_process import Gateway, refused
from PIL import Image

from halfreel.gateway.v1 import gateway_pb2 as pb


def sent(video: Serving, film: pb.Film) -> list[object]:
    return [each for each in video.double.behaviours.requests if each.request_id.startswith(film.film_id)]


def test_each_scene_starts_from_the_last_frame_before(gateway: Gateway, video: Serving) -> None:
    video.double.behaviours.script("ok", "die", "ok")  # the second scene is rendered twice, from the same picture
    film = gateway.ended(gateway.create("one shot", scene_count=3, continuous=True, seed=5).film_id)
    first, failed, second, third = sent(video, film)
    assert [each.last_frame for each in (first, second, third)] == [True, True, True]
    assert first.image == b""
    assert failed.image == second.image
    for scene, follower in zip(film.scenes, (second, third), strict=False):
        assert hashlib.sha256(follower.image).hexdigest() == scene.last_frame.sha256
        assert len(follower.image) == scene.last_frame.size_bytes
        picture = Image.open(io.BytesIO(follower.image))
        assert picture.size == (film.scenes[0].clip.width_px, film.scenes[0].clip.height_px)
        assert np.asarray(picture).std() > 1
    assert second.image != third.image
    assert video.double.most_running == 1
    # It goes with its clip.
    frames = gateway.data_dir / "clips"
    assert (frames / f"{film.scenes[0].clip.sha256}.png").is_file()
    gateway.stub.DeleteFilm(pb.DeleteFilmRequest(film_id=film.film_id), timeout=10)
    assert not (frames / f"{film.scenes[0].clip.sha256}.png").exists()


def test_other_films_need_no_last_frame(gateway: Gateway, video: Serving) -> None:
    film = gateway.ended(gateway.create("cuts", scene_count=2).film_id)
    assert [(each.last_frame, each.image) for each in sent(video, film)] == [(False, b"")] * 2
    assert not any(scene.HasField("last_frame") for scene in film.scenes)


@pytest.mark.parametrize("behaviour", ["corrupt_frame", "no_frame"])
def test_a_clip_without_its_last_frame_is_asked_for_again(gateway: Gateway, video: Serving, behaviour: str) -> None:
    video.double.behaviours.script(behaviour, "ok")
    film = gateway.ended(gateway.create("again", scene_count=2, continuous=True).film_id)
    assert [scene.attempt_count for scene in film.scenes] == [2, 1]
    video.double.behaviours.script(*[behaviour] * 3)
    film = gateway.ended(gateway.create("never", scene_count=1, continuous=True).film_id, pb.Film.STATE_FAILED)
    assert film.error.reason == "CLIP_CORRUPT"
    assert "its last frame" in film.error.message


def test_trades_go_to_the_video_server_and_are_told(gateway: Gateway, video: Serving) -> None:
    trades = ["reuse_features", "partial_guidance"]
    film = gateway.ended(gateway.create("fast", scene_count=1, trades=trades).film_id)
    (request,) = sent(video, film)
    assert list(request.trades) == list(film.settings.trades) == list(film.scenes[0].trades) == trades
    plain = gateway.ended(gateway.create("exact", scene_count=1).film_id)
    assert list(sent(video, plain)[0].trades) == list(plain.scenes[0].trades) == []


@pytest.mark.parametrize(
    ("trades", "told"),
    [
        (["faster"], "must be one of partial_guidance, reuse_features"),
        (["Faster!"], "are not at most 8 names in small letters"),
        ([f"trade_{index}" for index in range(9)], "are not at most 8 names in small letters"),
        (["reuse_features"] * 2, "names a trade twice"),
    ],
)
def test_trades_that_there_are_not_are_refused(gateway: Gateway, trades: list[str], told: str) -> None:
    gateway.ended(gateway.create("the model is known from now on", scene_count=1).film_id)
    error = refused(lambda: gateway.create("no trade", trades=trades))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert "settings.trades" in error.message
    assert told in error.message


def test_a_model_of_words_alone_makes_no_film_of_one_shot(own_gateway: Gateway, video: Serving) -> None:
    video.double.words_only = True
    try:
        own_gateway.start()
        error = refused(lambda: own_gateway.create("one shot", continuous=True))
    finally:
        video.double.words_only = False
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert "settings.continuous is set; the video model renders from words alone" in error.message
