"""A text-to-video model behind the same VideoService, as a process of its own over a real loopback channel."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import grpc
import pytest
from PIL import Image
from tiny_video import save_wan

from halfreel.gpu.v1 import gpu_pb2, gpu_pb2_grpc
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_runtime.errors import error_from_status

STARTS_WITHIN_S = 120.0
SMALL = {"prompt": "a red circle", "width_px": 64, "height_px": 64, "frame_count": 5, "step_count": 2, "seed": 1}


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    folder = tmp_path_factory.mktemp("server")
    port_file, log = folder / "ports.json", folder / "log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    # No keyframe model is named: where it were loaded, its absence would stop the server.
    flags = ["--model", str(save_wan(folder)), "--keyframe-model", "no-such-model", "--device", "cpu", "--port", "0"]
    flags += ["--metrics-port", "0", "--port-file", str(port_file), "--thread-count", "1"]
    # How full the machine is, of which it would warn, is no doing of this server.
    flags += ["--warn-threshold-ratio", "0"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "halfreel_video", *flags], env=environment, stdout=output, stderr=output
        )
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not port_file.is_file():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with grpc.insecure_channel(f"127.0.0.1:{json.loads(port_file.read_text())['port']}") as channel:
        yield channel
    server.send_signal(signal.SIGTERM)
    assert server.wait(90) == 0, log.read_text()  # its grace is 30 s, and a busy machine adds to it
    lines = log.read_text().splitlines()
    assert all(json.loads(line)["level"] in ("debug", "info") for line in lines), log.read_text()


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    stub = video_pb2_grpc.VideoServiceStub(channel)
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            stub.GetModel(video_pb2.GetModelRequest())
            return stub
        except grpc.RpcError as error:
            reason = error_from_status(error).reason
        assert reason == "MODEL_LOADING"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def generate(stub: Any, **fields: Any) -> list[video_pb2.GenerateResponse]:
    return list(stub.Generate(video_pb2.GenerateRequest(**(SMALL | fields))))


def mp4_of(events: list[video_pb2.GenerateResponse]) -> bytes:
    return b"".join(event.video_chunk.data for event in events)


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_status(caught.value)


def test_words_become_a_clip_and_events_come_in_order(stub: Any) -> None:
    events = generate(stub, frame_count=9, preview=True, step_count=3)
    order = [event.WhichOneof("event") for event in events]
    assert (order[0], order[-1]) == ("queued", "completed")
    stages = [event.stage.stage for event in events if event.WhichOneof("event") == "stage"]
    assert stages == [
        video_pb2.STAGE_ENCODE,
        video_pb2.STAGE_DENOISE,
        video_pb2.STAGE_DECODE,
        video_pb2.STAGE_MUX,
    ]
    steps = [event.step for event in events if event.WhichOneof("event") == "step"]
    assert (steps[-1].index, steps[-1].count) == (3, 3)
    preview = next(event.preview for event in events if event.WhichOneof("event") == "preview")
    assert Image.open(io.BytesIO(preview.jpeg)).format == "JPEG"
    completed = events[-1].completed
    assert (completed.frame_count, completed.dtype, completed.device) == (9, "float32", "cpu")
    assert [each.phase for each in completed.phase_peaks] == ["encode", "denoise", "decode", "mux"]
    with av.open(io.BytesIO(mp4_of(events))) as container:
        video = container.streams.video[0]
        frames = list(container.decode(video))
        assert (video.width, video.height, video.average_rate, len(frames)) == (64, 64, 8, 9)


@pytest.mark.parametrize("frame_count", [2, 6, 8])
def test_frames_between_fours_are_left_away(stub: Any, frame_count: int) -> None:
    events = generate(stub, frame_count=frame_count)
    assert events[-1].completed.frame_count == frame_count
    with av.open(io.BytesIO(mp4_of(events))) as container:
        assert len(list(container.decode(video=0))) == frame_count


def test_same_request_same_bytes_also_after_a_cancelled_one(stub: Any) -> None:
    first = generate(stub)
    call = stub.Generate(video_pb2.GenerateRequest(**(SMALL | {"step_count": 100, "frame_count": 33, "seed": 9})))
    for event in call:
        if event.WhichOneof("event") == "step":
            break
    began = time.monotonic()
    call.cancel()
    again = generate(stub, levers=first[-1].completed.levers, decode_chunk_frame_count=4)
    # 99 steps were left of the cancelled clip.
    assert time.monotonic() - began < 50 * event.step.duration.ToTimedelta().total_seconds() + 10
    assert mp4_of(again) == mp4_of(first)
    assert mp4_of(generate(stub, seed=2)) != mp4_of(first)
    assert mp4_of(generate(stub, prompt="a blue square")) != mp4_of(first)


def test_guidance_in_part_is_a_trade_that_is_told(stub: Any) -> None:
    whole, part = generate(stub, step_count=4), generate(stub, step_count=4, trades=["partial_guidance"])
    assert list(whole[-1].completed.trades) == []
    assert list(part[-1].completed.trades) == ["partial_guidance"]
    assert mp4_of(whole) != mp4_of(part)


def test_get_model_tells_limits_and_defaults_that_hold(stub: Any) -> None:
    model = stub.GetModel(video_pb2.GetModelRequest())
    assert (model.model_id, model.keyframe_model_id, model.architecture) == ("wan", "", "WanPipeline")
    assert (model.default_width_px, model.default_height_px, model.default_frame_count) == (64, 64, 9)
    assert (model.default_step_count, model.default_fps, model.default_guidance_scale) == (2, 8, 4.0)
    assert (model.max_width_px, model.max_height_px, model.max_frame_count) == (256, 256, 36)
    assert model.weight_bytes > 0
    completed = list(stub.Generate(video_pb2.GenerateRequest(prompt="x")))[-1].completed
    assert (completed.width_px, completed.height_px, completed.frame_count, completed.fps) == (64, 64, 9, 8)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prompt", "", "words alone"),
        ("image", b"x", "words alone"),
        ("width_px", 72, "a multiple of 16"),
        ("frame_count", 37, "between 2 and 36"),
        ("decode_chunk_frame_count", 8, "between 4 and 4"),
        ("levers", video_pb2.GenerateResponse.Levers(split_guidance=True), "one way"),
        ("trades", ["reuse_features"], "partial_guidance"),
        ("trades", ["partial_guidance", "partial_guidance"], "twice"),
        ("trades", ["a", "b", "c"], "3 names"),
    ],
)
def test_what_this_model_cannot_do_is_refused_by_field(stub: Any, field: str, value: Any, said: str) -> None:
    error = refused(lambda: generate(stub, **{field: value}))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert {violation.field for violation in error.violations} == {field}
    assert said in error.message


def test_a_plan_is_refused_with_the_reason(stub: Any) -> None:
    error = refused(lambda: stub.PlanMemory(video_pb2.PlanMemoryRequest()))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_PLANNED")
    assert "WanPipeline" in error.message


def test_it_sleeps_and_makes_the_same_clip_when_woken(stub: Any, channel: grpc.Channel) -> None:
    first = mp4_of(generate(stub))
    gpu_pb2_grpc.MemoryServiceStub(channel).Sleep(gpu_pb2.SleepRequest())
    assert mp4_of(generate(stub)) == first
