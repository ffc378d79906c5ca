"""GatewayService, method by method, over a real loopback channel."""

from __future__ import annotations

import hashlib
import io
import sqlite3
import urllib.request
from typing import Any

import av
import grpc
import pytest
from gateway_doubles import Serving
from gateway_process import Gateway, refused
from grpc_health.v1 import health_pb2, health_pb2_grpc

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.llm.v1 import llm_pb2

UNKNOWN = "0123456789abcdef" * 2
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def film(gateway: Gateway) -> pb.Film:
    return gateway.ended(gateway.create("a red circle", scene_count=3, seed=11).film_id)


def test_create_answers_before_anything_is_made(gateway: Gateway, llm: Serving) -> None:
    llm.double.behaviours.script("hold")
    film = gateway.create("a slow script", scene_count=1, fps=7)
    assert (film.state, film.idea, film.settings.scene_count) == (pb.Film.STATE_QUEUED, "a slow script", 1)
    assert film.settings.HasField("seed")
    assert not film.settings.HasField("width_px")
    assert len(film.film_id) == 32
    llm.double.behaviours.let_go.set()
    gateway.ended(film.film_id)


def test_a_finished_film_tells_all_of_itself(film: pb.Film) -> None:
    assert film.progress_ratio == 1.0
    assert film.title == "A film of doubles"
    assert film.waiting_reason == ""
    assert [scene.index for scene in film.scenes] == [0, 1, 2]
    assert [scene.motion for scene in film.scenes] == [pb.MOTION_STILL, pb.MOTION_LEFT, pb.MOTION_LEFT]
    assert len({scene.seed for scene in film.scenes}) == 3
    for scene in film.scenes:
        assert scene.state == pb.Scene.STATE_SUCCEEDED
        assert scene.attempt_count == 1
        assert (scene.clip.frame_count, scene.clip.fps) == (7, 7)
        assert [stage.stage for stage in scene.stages] == ["keyframe", "denoise"]
        assert [peak.phase for peak in scene.phase_peaks] == ["denoise", "decode"]
    assert [peak.phase for peak in film.script_phase_peaks] == ["prefill", "decode"]
    assert (film.video.width_px, film.video.height_px, film.video.frame_count) == (96, 64, 21)
    assert film.video.duration.ToMilliseconds() == 3000
    assert film.create_time.ToMicroseconds() < film.end_time.ToMicroseconds()
    assert film.render_duration.ToMicroseconds() > 0
    assert not film.HasField("error")


def test_the_video_is_what_the_film_says_and_plays(gateway: Gateway, film: pb.Film) -> None:
    data = gateway.read(film.film_id)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (film.video.size_bytes, film.video.sha256)
    with av.open(io.BytesIO(data)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
        assert container.metadata["title"] == film.title
    assert times == pytest.approx([i / 7 for i in range(21)], abs=1e-3)
    with av.open(io.BytesIO(data)) as container:
        cues = [bytes(packet)[2:].decode() for packet in container.demux(subtitles=0) if packet.size > 2]
    assert cues == [scene.narration for scene in film.scenes]


def test_the_model_servers_hear_what_was_asked(gateway: Gateway, llm: Serving, video: Serving) -> None:
    wanted = {"width_px": 128, "height_px": 72, "fps": 5, "step_count": 2, "scene_seconds": 2, "guidance_scale": 2.5}
    film = gateway.create("two scenes", scene_count=2, temperature=0.5, seed=5, **wanted)
    film = gateway.ended(film.film_id)
    asked = llm.double.behaviours.requests[-1]
    assert [message.role for message in asked.messages] == [llm_pb2.ROLE_SYSTEM, llm_pb2.ROLE_USER]
    assert asked.messages[1].content == "Idea: two scenes\nScenes: 2"
    assert asked.temperature == 0.5
    scenes = {request.seed: request for request in video.double.behaviours.requests}
    for scene in film.scenes:
        asked = scenes[scene.seed]
        assert asked.prompt == scene.picture
        assert (asked.width_px, asked.height_px, asked.fps, asked.frame_count) == (128, 72, 5, 10)
        assert (asked.step_count, asked.guidance_scale) == (2, 2.5)
        assert asked.HasField("motion_bucket") == (scene.motion == pb.MOTION_STILL)
    assert film.video.frame_count == 20


def test_the_same_seed_gives_the_same_film(gateway: Gateway) -> None:
    films = [gateway.ended(gateway.create("again", scene_count=2, seed=77).film_id) for _ in range(2)]
    assert films[0].film_id != films[1].film_id
    assert films[0].video.sha256 == films[1].video.sha256


def test_one_request_id_is_one_film(gateway: Gateway) -> None:
    first = gateway.create("an idea", request_id="once", scene_count=1, seed=1)
    assert gateway.create("an idea", request_id="once", scene_count=1, seed=1).film_id == first.film_id
    for idea, settings in (("another", {"scene_count": 1, "seed": 1}), ("an idea", {"scene_count": 2, "seed": 1})):
        error = refused(lambda idea=idea, settings=settings: gateway.create(idea, request_id="once", **settings))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    gateway.ended(first.film_id)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("request_id", {"request_id": ""}),
        ("request_id", {"request_id": "x" * 129}),
        ("request_id", {"request_id": "a b"}),
        ("idea", {"idea": " \n"}),
        ("idea", {"idea": "x" * 2001}),
        ("settings.scene_count", {"scene_count": 0}),
        ("settings.scene_count", {"scene_count": 9}),
        ("settings.width_px", {"width_px": 100}),
        ("settings.width_px", {"width_px": 1_000_001}),
        ("settings.height_px", {"height_px": 56}),
        ("settings.height_px", {"height_px": 1024}),
        ("settings.fps", {"fps": 61}),
        ("settings.fps", {"fps": 0}),
        ("settings.step_count", {"step_count": 101}),
        ("settings.scene_seconds", {"scene_seconds": 31}),
        ("settings.scene_seconds", {"scene_seconds": 11}),
        ("settings.motion_bucket", {"motion_bucket": 256}),
        ("settings.guidance_scale", {"guidance_scale": 0.5}),
        ("settings.guidance_scale", {"guidance_scale": "NaN"}),
        ("settings.temperature", {"temperature": "Infinity"}),
        ("settings.seed", {"seed": -1}),
    ],
)
def test_a_wrong_field_is_named_with_its_limit(gateway: Gateway, field: str, change: dict[str, Any]) -> None:
    error = refused(lambda: gateway.create(**({"idea": "a red circle", "request_id": "wrong"} | change)))
    assert (error.code, error.reason) == (INVALID, "INVALID_FIELD")
    assert field in {violation.field for violation in error.violations}
    assert error.message.startswith(f"{field} ")


def test_all_wrong_fields_are_told_at_once(gateway: Gateway) -> None:
    error = refused(lambda: gateway.create("", request_id="", fps=99))
    assert {violation.field for violation in error.violations} == {"request_id", "idea", "settings.fps"}


@pytest.mark.parametrize("method", ["GetFilm", "WatchFilm", "CancelFilm", "DeleteFilm", "ReadVideo"])
def test_a_film_that_is_not_there(gateway: Gateway, method: str) -> None:
    request = getattr(pb, f"{method}Request")
    for film_id in (UNKNOWN, "../../etc/passwd", "x" * 5000, UNKNOWN.upper()):
        error = refused(lambda film_id=film_id: getattr(gateway.stub, method)(request(film_id=film_id), timeout=20))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "FILM_NOT_FOUND")
    error = refused(lambda: getattr(gateway.stub, method)(request(), timeout=20))
    assert (error.code, error.reason) == (INVALID, "INVALID_FIELD")
    assert "film_id" in error.message


def test_a_message_that_does_not_parse(gateway: Gateway) -> None:
    raw = gateway.channel.unary_unary("/halfreel.gateway.v1.GatewayService/CreateFilm")
    error = refused(lambda: raw(b"\xff\xff\xff", timeout=20))
    assert (error.code, error.reason) == (INVALID, "MALFORMED_MESSAGE")


def test_listing_is_newest_first_and_complete(gateway: Gateway) -> None:
    made = [gateway.create("a listed film", scene_count=1, seed=i).film_id for i in range(5)]
    for film_id in made:
        gateway.ended(film_id)
    listed, token = [], ""
    while True:
        page = gateway.stub.ListFilms(pb.ListFilmsRequest(page_size=2, page_token=token), timeout=20)
        assert len(page.films) <= 2
        listed += page.films
        token = page.next_page_token
        if not token:
            break
    assert [film.film_id for film in listed[:5]] == made[::-1]
    assert len({film.film_id for film in listed}) == len(listed)
    times = [film.create_time.ToMicroseconds() for film in listed]
    assert times == sorted(times, reverse=True)
    first_page = gateway.stub.ListFilms(pb.ListFilmsRequest(), timeout=20).films
    assert list(first_page) == listed[:50]
    assert first_page[0] == gateway.get(made[-1])


def test_a_foreign_page_token_and_a_wrong_page_size(gateway: Gateway) -> None:
    for request in (pb.ListFilmsRequest(page_token="bm90IG91cnM="), pb.ListFilmsRequest(page_size=501)):
        error = refused(lambda request=request: gateway.stub.ListFilms(request, timeout=20))
        assert (error.code, error.reason) == (INVALID, "INVALID_FIELD")
        assert error.violations[0].field == ("page_token" if request.page_token else "page_size")


def test_reading_from_an_offset(gateway: Gateway, film: pb.Film) -> None:
    data = gateway.read(film.film_id)
    assert gateway.read(film.film_id, 1000) == data[1000:]
    assert gateway.read(film.film_id, len(data)) == b""
    for offset in (-1, len(data) + 1):
        error = refused(lambda offset=offset: gateway.read(film.film_id, offset))
        assert (error.code, error.violations[0].field) == (INVALID, "offset_bytes")


def test_a_damaged_video_is_never_passed_for_the_film(gateway: Gateway) -> None:
    film = gateway.ended(gateway.create("to be damaged", scene_count=1, seed=4).film_id)
    path = gateway.data_dir / "films" / f"{film.film_id}.mp4"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        error = refused(lambda: gateway.read(film.film_id))
        assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "VIDEO_DAMAGED")
        assert "/" not in error.message


def test_a_film_in_the_making_can_be_cancelled_but_not_read_or_deleted(gateway: Gateway, video: Serving) -> None:
    video.double.behaviours.script("hold")
    film = gateway.create("a long film", scene_count=2, seed=3)
    assert video.double.behaviours.held.wait(10)
    error = refused(lambda: gateway.read(film.film_id))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VIDEO_NOT_READY")
    assert error.metadata["state"] == "RENDERING"
    error = refused(lambda: gateway.stub.DeleteFilm(pb.DeleteFilmRequest(film_id=film.film_id), timeout=20))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FILM_NOT_ENDED")

    cancel = pb.CancelFilmRequest(film_id=film.film_id)
    cancelled = gateway.stub.CancelFilm(cancel, timeout=20).film
    assert video.double.behaviours.cancelled.wait(10), "the video server was not told"
    assert cancelled.state == pb.Film.STATE_CANCELLED
    assert {scene.state for scene in cancelled.scenes} == {pb.Scene.STATE_CANCELLED}
    assert cancelled.HasField("end_time")
    assert gateway.stub.CancelFilm(cancel, timeout=20).film == cancelled
    gateway.stub.DeleteFilm(pb.DeleteFilmRequest(film_id=film.film_id), timeout=20)
    assert refused(lambda: gateway.get(film.film_id)).reason == "FILM_NOT_FOUND"


def test_deleting_keeps_the_clips_that_another_film_has(gateway: Gateway) -> None:
    films = [gateway.ended(gateway.create("shared", scene_count=2, seed=99).film_id) for _ in range(2)]
    clips = [gateway.data_dir / "clips" / f"{scene.clip.sha256}.mp4" for scene in films[0].scenes]
    for film, left in zip(films, (True, False), strict=True):
        gateway.stub.DeleteFilm(pb.DeleteFilmRequest(film_id=film.film_id), timeout=20)
        assert not (gateway.data_dir / "films" / f"{film.film_id}.mp4").exists()
        assert [clip.exists() for clip in clips] == [left, left]
        assert refused(lambda film=film: gateway.read(film.film_id)).reason == "FILM_NOT_FOUND"
        with sqlite3.connect(gateway.data_dir / "gateway.sqlite") as database:
            query = "SELECT count(*) FROM workflow_status WHERE workflow_uuid LIKE ?"
            assert database.execute(query, (f"{film.film_id}%",)).fetchone() == (0,)
        database.close()


def test_memory_of_all_servers_also_when_one_is_down(gateway: Gateway, llm: Serving, video: Serving) -> None:
    servers = gateway.stub.MemoryStatus(pb.MemoryStatusRequest(), timeout=20).servers
    assert [server.kind for server in servers] == [pb.SERVER_KIND_LLM, pb.SERVER_KIND_VIDEO]
    assert [server.address for server in servers] == [llm.address, video.address]
    assert [server.report.devices[0].allocated_bytes for server in servers] == [5, 5]
    assert {server.problem for server in servers} == {""}
    video.down()
    servers = gateway.stub.MemoryStatus(pb.MemoryStatusRequest(), timeout=20).servers
    assert servers[0].HasField("report")
    assert not servers[1].HasField("report")
    assert servers[1].problem == "is not reachable"


def test_health_and_metrics(gateway: Gateway, film: pb.Film) -> None:
    service = health_pb2.HealthCheckRequest(service="halfreel.gateway.v1.GatewayService")
    answer = health_pb2_grpc.HealthStub(gateway.channel).Check(service, timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.ports['metrics_port']}/metrics", timeout=20) as page:
        lines = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line[0] != "#")
    assert float(lines['halfreel_films{state="succeeded"}']) >= 1
    assert float(lines['halfreel_films{state="joining"}']) == 0
    assert float(lines['halfreel_scene_attempts_total{outcome="succeeded"}']) >= 3
