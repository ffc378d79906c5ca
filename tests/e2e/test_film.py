"""One sentence in, a film out: what comes out is what was said of it."""

from __future__ import annotations

import hashlib
import io
import time

import av
import grpc
import pytest

from halfreel.gateway.v1 import gateway_pb2 as pb

IDEA = "a red circle moving over a blue sky, then a green square in the snow"


@pytest.fixture(scope="module")
def film(stack) -> pb.Film:
    made = stack.create(IDEA, scene_count=2, scene_seconds=2, step_count=3, seed=3)
    assert made.state == pb.Film.STATE_QUEUED
    ended = stack.wait_ended(made.film_id)
    assert ended.state == pb.Film.STATE_SUCCEEDED, ended.error
    return ended


def test_the_film_plays_and_is_as_long_as_it_says(stack, film: pb.Film) -> None:
    data = stack.read(film.film_id)
    assert hashlib.sha256(data).hexdigest() == film.video.sha256
    with av.open(io.BytesIO(data)) as container:
        video = container.streams.video[0]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video)]
    assert len(film.scenes) == 2
    assert len(times) == film.video.frame_count == 2 * 2 * film.video.fps
    assert times == pytest.approx([i / film.video.fps for i in range(len(times))], abs=1e-3)
    assert film.video.duration.ToTimedelta().total_seconds() == pytest.approx(4.0, abs=0.05)
    assert video.codec_context.name == "h264"
    assert (video.width, video.height) == (film.video.width_px, film.video.height_px)


def test_the_captions_read_as_the_script(stack, film: pb.Film) -> None:
    spoken = []
    with av.open(io.BytesIO(stack.read(film.film_id))) as container:
        for packet in container.demux(container.streams.subtitles[0]):
            # 3GPP timed text: two bytes of length, then the text. libav's own decoder would read "{" as markup.
            if packet.size > 2:
                text = bytes(packet)[2 : 2 + int.from_bytes(bytes(packet)[:2], "big")].decode()
                spoken.append((float(packet.pts * packet.time_base), text))
    assert [text for _, text in spoken] == [scene.narration for scene in film.scenes]
    assert [at for at, _ in spoken] == pytest.approx([0.0, 2.0], abs=0.05)


def test_the_film_tells_what_it_took(film: pb.Film) -> None:
    assert film.progress_ratio == 1.0
    assert film.title
    assert film.script_duration.ToTimedelta().total_seconds() > 0
    assert film.render_duration.ToTimedelta().total_seconds() > 0
    for scene in film.scenes:
        assert [figure.stage for figure in scene.stages] == ["keyframe", "encode", "denoise", "decode", "mux"]
        peaks = {peak.phase: peak.peak.allocated_bytes for peak in scene.phase_peaks}
        assert {"keyframe", "denoise", "decode"} <= set(peaks)
        assert min(peaks.values()) > 0
    assert {peak.phase for peak in film.script_phase_peaks} >= {"prefill", "decode"}


def test_watching_later_tells_the_same_story_by_number(stack, film: pb.Film) -> None:
    events = list(stack.watch(film.film_id, after=0))
    numbers = [event.sequence_number for event in events[1:]]
    assert events[0].WhichOneof("event") == "film"
    assert numbers == list(range(1, len(numbers) + 1))
    states = [event.state_changed.state for event in events if event.WhichOneof("event") == "state_changed"]
    assert states == sorted(states)
    assert states[-1] == pb.Film.STATE_SUCCEEDED
    later = [event.sequence_number for event in stack.watch(film.film_id, after=numbers[2])]
    assert later[1:] == numbers[3:]


def test_the_same_request_again_is_the_same_film(stack) -> None:
    first = stack.create("a yellow star", request_id="again-1", scene_count=1, scene_seconds=1, step_count=1, seed=1)
    again = stack.create("a yellow star", request_id="again-1", scene_count=1, scene_seconds=1, step_count=1, seed=1)
    assert first.film_id == again.film_id
    with pytest.raises(grpc.RpcError) as refused:
        stack.create("another idea", request_id="again-1", scene_count=1, scene_seconds=1, step_count=1, seed=1)
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert stack.wait_ended(first.film_id).state == pb.Film.STATE_SUCCEEDED


def test_cancel_frees_the_video_server(stack) -> None:
    film = stack.create("a slow film", scene_count=1, scene_seconds=8, step_count=100, seed=1)
    for event in stack.watch(film.film_id, after=0):
        if event.WhichOneof("event") == "scene_step":
            break
    cancelled = stack.gateway.CancelFilm(pb.CancelFilmRequest(film_id=film.film_id), timeout=10).film
    assert cancelled.state == pb.Film.STATE_CANCELLED
    began = time.monotonic()
    short = stack.create("a short film", scene_count=1, scene_seconds=1, step_count=1, seed=1)
    assert stack.wait_ended(short.film_id).state == pb.Film.STATE_SUCCEEDED
    assert time.monotonic() - began < 30


def test_a_video_server_that_is_down_makes_the_film_wait_and_say_so(stack) -> None:
    stack.kill("video")
    film = stack.create("a patient film", scene_count=1, scene_seconds=1, step_count=1, seed=5)
    deadline = time.monotonic() + 60
    while not (reason := stack.get(film.film_id).waiting_reason):
        assert time.monotonic() < deadline, "the film did not say that it waits"
        time.sleep(0.2)
    assert "video" in reason
    stack.start("video")
    stack.wait_serving("video")
    ended = stack.wait_ended(film.film_id)
    assert ended.state == pb.Film.STATE_SUCCEEDED, ended.error
    assert ended.waiting_reason == ""


def test_the_gateway_tells_the_memory_of_all_servers(stack) -> None:
    servers = stack.gateway.MemoryStatus(pb.MemoryStatusRequest(), timeout=5).servers
    assert [server.kind for server in servers] == [pb.SERVER_KIND_LLM, pb.SERVER_KIND_VIDEO]
    for server in servers:
        assert server.problem == ""
        assert server.report.host.process_resident_bytes > 50 << 20
        assert server.report.devices[0].gpu_uuid == "cpu"
