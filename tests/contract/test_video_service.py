"""VideoService over a real loopback channel: the order of events, every reason of an error, deadline and cancel."""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_video import CLIP_FRAME_COUNT, save_models

from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_runtime.device import find_device
from halfreel_runtime.engine import Engine, EngineState
from halfreel_runtime.errors import error_from_status
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.server import Server
from halfreel_runtime.suggestions import MemoryLimits
from halfreel_video.admission import Admission
from halfreel_video.model import VideoModel, load_model
from halfreel_video.service import VideoService
from halfreel_video.settings import VideoSettings

SERVICE_NAME = "halfreel.video.v1.VideoService"
STARTS_WITHIN_S = 120.0
SMALL = {"prompt": "a red circle", "width_px": 64, "height_px": 64, "frame_count": 3, "step_count": 2, "seed": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.set_num_threads(1)
    return save_models(tmp_path_factory.mktemp("models"))


# A server as a process of its own, as people run it.


@pytest.fixture(scope="module")
def process(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    folder = tmp_path_factory.mktemp("server")
    port_file, log = folder / "ports.json", folder / "log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    flags = ["--model", str(folders[0]), "--keyframe-model", str(folders[1]), "--device", "cpu", "--port", "0"]
    flags += ["--metrics-port", "0", "--port-file", str(port_file)]
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
    server.ports = json.loads(port_file.read_text())  # type: ignore[attr-defined]  # for the fixture below
    yield server
    server.send_signal(signal.SIGTERM)
    assert server.wait(90) == 0, log.read_text()  # its grace is 30 s, and a busy machine adds to it
    lines = log.read_text().splitlines()
    assert all(json.loads(line)["level"] in ("debug", "info") for line in lines), log.read_text()


@pytest.fixture(scope="module")
def stub(process: Any) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{process.ports['port']}") as channel:
        stub = video_pb2_grpc.VideoServiceStub(channel)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                stub.GetModel(video_pb2.GetModelRequest())
                break
            except grpc.RpcError as error:
                reason = error_from_status(error).reason
            assert reason == "MODEL_LOADING"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield stub


def generate(stub: Any, **fields: Any) -> list[video_pb2.GenerateResponse]:
    return list(stub.Generate(video_pb2.GenerateRequest(**(SMALL | fields))))


def kinds(events: list[video_pb2.GenerateResponse]) -> list[str]:
    return [event.WhichOneof("event") for event in events]


def mp4_of(events: list[video_pb2.GenerateResponse]) -> bytes:
    """Joins the chunks, and checks them against the figures that came last."""
    data = b""
    for event in events:
        if event.WhichOneof("event") == "video_chunk":
            assert event.video_chunk.offset_bytes == len(data)
            assert 0 < len(event.video_chunk.data) <= 2**20
            data += event.video_chunk.data
    completed = events[-1].completed
    assert completed.size_bytes == len(data)
    assert completed.sha256 == hashlib.sha256(data).hexdigest()
    return data


def png(width: int = 64, height: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_status(caught.value)


def test_events_come_in_order_and_the_clip_plays(stub: Any) -> None:
    events = generate(stub, preview=True, fps=9)
    order = kinds(events)
    assert order[:2] == ["queued", "plan"]
    assert order[-1] == "completed"
    assert order.count("plan") == 1
    assert order.count("queued") == order.count("completed") == 1
    stages = [event.stage.stage for event in events if event.WhichOneof("event") == "stage"]
    assert stages == [
        video_pb2.STAGE_KEYFRAME,
        video_pb2.STAGE_ENCODE,
        video_pb2.STAGE_DENOISE,
        video_pb2.STAGE_DECODE,
        video_pb2.STAGE_MUX,
    ]
    assert order.index("video_chunk") > max(index for index, kind in enumerate(order) if kind == "stage")
    assert set(order[order.index("video_chunk") : -1]) == {"video_chunk"}
    steps = [event.step for event in events if event.WhichOneof("event") == "step"]
    assert steps[-1].index == steps[-1].count == 2
    assert steps[-1].remaining.ToTimedelta().total_seconds() == 0
    assert all(step.duration.ToTimedelta().total_seconds() > 0 for step in steps)
    preview = next(event.preview for event in events if event.WhichOneof("event") == "preview")
    assert Image.open(io.BytesIO(preview.jpeg)).format == "JPEG"
    with av.open(io.BytesIO(mp4_of(events))) as container:
        video = container.streams.video[0]
        frames = list(container.decode(video))
        assert (video.width, video.height, video.average_rate, len(frames)) == (64, 64, 9, 3)
        assert float(video.duration * video.time_base) == pytest.approx(3 / 9)


def test_the_end_tells_what_it_took(stub: Any) -> None:
    completed = generate(stub)[-1].completed
    assert (completed.width_px, completed.height_px, completed.frame_count, completed.fps) == (64, 64, 3, 7)
    assert (completed.seed, completed.dtype, completed.device) == (1, "float32", "cpu")
    assert (completed.levers.decode_chunk_frame_count, completed.levers.attention_backend) == (8, "sdpa")
    seconds = [each.duration.ToTimedelta().total_seconds() for each in completed.stage_durations]
    assert [each.stage for each in completed.stage_durations] == [1, 2, 3, 4, 5]
    assert 0 < sum(seconds) <= completed.generate_duration.ToTimedelta().total_seconds()
    peaks = {each.phase: each.peak.allocated_bytes for each in completed.phase_peaks}
    assert list(peaks) == ["keyframe", "encode", "denoise", "decode", "mux"]
    assert min(peaks.values()) > 0


def test_a_seed_is_chosen_and_told_where_none_is_given(stub: Any) -> None:
    request = video_pb2.GenerateRequest(**SMALL)
    request.ClearField("seed")
    first, second = list(stub.Generate(request)), list(stub.Generate(request))
    assert first[-1].completed.seed != second[-1].completed.seed
    assert mp4_of(generate(stub, seed=first[-1].completed.seed)) == mp4_of(first)


def test_a_clip_longer_than_the_models_own_is_chained(stub: Any) -> None:
    events = generate(stub, frame_count=2 * CLIP_FRAME_COUNT + 1)
    stages = [event.stage for event in events if event.WhichOneof("event") == "stage"]
    assert {stage.segment_count for stage in stages} == {3}
    assert sorted({stage.segment_index for stage in stages}) == [0, 1, 2]
    assert [stage.stage for stage in stages].count(video_pb2.STAGE_KEYFRAME) == 1
    steps = [event.step for event in events if event.WhichOneof("event") == "step"]
    assert (steps[-1].index, steps[-1].count) == (6, 6)
    with av.open(io.BytesIO(mp4_of(events))) as container:
        assert len(list(container.decode(video=0))) == events[-1].completed.frame_count == 11


def test_same_request_same_bytes_also_after_a_cancelled_one(stub: Any) -> None:
    first = mp4_of(generate(stub, image=png()))
    call = stub.Generate(video_pb2.GenerateRequest(**(SMALL | {"step_count": 100, "seed": 9})))
    for event in call:
        if event.WhichOneof("event") == "step":
            break
    call.cancel()
    assert mp4_of(generate(stub, image=png())) == first
    assert mp4_of(generate(stub, image=png(), seed=2)) != first


def test_a_picture_is_used_instead_of_words(stub: Any) -> None:
    events = generate(stub, prompt="", image=png(200, 100))
    assert video_pb2.STAGE_KEYFRAME not in [event.stage.stage for event in events]
    assert mp4_of(events) != mp4_of(generate(stub))


def test_get_model_tells_limits_and_defaults_that_hold(stub: Any) -> None:
    model = stub.GetModel(video_pb2.GetModelRequest())
    assert (model.model_id, model.keyframe_model_id) == ("svd", "keyframe")
    assert (model.architecture, model.dtype, model.device) == ("StableVideoDiffusionPipeline", "float32", "cpu")
    assert model.weight_bytes == 4 * model.parameter_count > 10**6
    assert (model.default_width_px, model.default_height_px, model.default_frame_count) == (64, 64, 5)
    assert (model.default_step_count, model.default_fps, model.default_motion_bucket) == (2, 7, 127)
    assert (model.max_width_px, model.max_height_px, model.max_frame_count) == (256, 256, 1800)
    assert model.default_guidance_scale == 1.0
    assert model.max_waiting_request_count == 16
    assert model.contract_version == "1.0"
    completed = list(stub.Generate(video_pb2.GenerateRequest(prompt="x")))[-1].completed
    assert (completed.width_px, completed.height_px, completed.frame_count) == (64, 64, 5)
    for field, largest in (("width_px", 256), ("height_px", 256), ("frame_count", 1800)):
        error = refused(lambda field=field, largest=largest: generate(stub, **{field: largest + 8}))
        assert f"{field} is {largest + 8}; it must be between" in error.message
        assert f"and {largest}" in error.message


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("width_px", 1_000_001, "between 64 and 256"),
        ("height_px", 100, "a multiple of 8"),
        ("frame_count", 1, "between 2 and 1800"),
        ("step_count", 101, "between 1 and 100"),
        ("fps", 0, "between 1 and 60"),
        ("motion_bucket", 256, "between 1 and 255"),
        ("guidance_scale", float("nan"), "between 1 and 20"),
        ("decode_chunk_frame_count", 0, "between 1 and 200"),
        ("seed", -1, "between 0 and"),
        ("prompt", "x" * 2001, "at most 2000"),
        ("prompt", "", "image"),
        ("request_id", "\n", "visible ASCII"),
        ("trades", ["faster"], "partial_guidance, reuse_features"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_limit(stub: Any, field: str, value: Any, limit: str) -> None:
    error = refused(lambda: generate(stub, **{field: value}))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in error.violations] == [field]
    assert limit in error.message


def _gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "GIF")
    return buffer.getvalue()


def _bomb() -> bytes:
    data = bytearray(png())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (_gif(), "PNG, JPEG or WebP"),
        (b"<svg/>", "PNG, JPEG or WebP"),
        (png(99, 99)[:-60], "cut short"),
        (_bomb(), "header"),
        (png() + bytes(11 * 2**20), "at most 10485760"),
    ],
    ids=["gif", "svg", "truncated", "bomb", "too large"],
)
def test_a_bad_image_is_refused(stub: Any, image: bytes, message: str) -> None:
    error = refused(lambda: generate(stub, image=image))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_INVALID")
    assert message in error.message
    assert [violation.field for violation in error.violations] == ["image"]


def test_bytes_that_are_no_request_are_refused(process: Any) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{process.ports['port']}") as channel:
        call = channel.unary_stream(f"/{SERVICE_NAME}/Generate")
        error = refused(lambda: list(call(b"\xff\xff\xff")))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


def test_a_deadline_ends_the_work(stub: Any) -> None:
    request = video_pb2.GenerateRequest(**(SMALL | {"step_count": 100, "frame_count": 40}))
    took_s = []
    for _ in range(3):  # others use this machine as well: the quickest tells what the server does
        began = time.monotonic()
        error = refused(lambda: list(stub.Generate(request, timeout=0.5)))
        took_s.append(time.monotonic() - began)
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        _wait_idle(stub)
    assert min(took_s) < 2


def test_a_cancelled_call_frees_the_model_within_a_step(stub: Any) -> None:
    left_s = []
    for _ in range(3):  # others use this machine as well: the quickest tells what the server does
        call = stub.Generate(video_pb2.GenerateRequest(**(SMALL | {"step_count": 100, "frame_count": 40})))
        step_s = [
            event.step.duration.ToTimedelta().total_seconds()
            for event, _ in zip(call, range(8), strict=False)
            if event.WhichOneof("event") == "step"
        ]
        call.cancel()
        began = time.monotonic()
        _wait_idle(stub)
        left_s.append(time.monotonic() - began - 10 * max(step_s))
    assert min(left_s) < 0.5


def _wait_idle(stub: Any) -> None:
    deadline = time.monotonic() + 20
    while stub.MemoryStatus(video_pb2.MemoryStatusRequest()).report.devices[0].current_phase:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_memory_is_told_while_a_clip_is_rendered(stub: Any) -> None:
    call = stub.Generate(video_pb2.GenerateRequest(**(SMALL | {"step_count": 100, "frame_count": 5})))
    try:
        next(event for event in call if event.WhichOneof("event") == "step")
        (device,) = stub.MemoryStatus(video_pb2.MemoryStatusRequest()).report.devices
        assert device.current_phase == "denoise"
        assert device.device_kind == gpu_pb2.DEVICE_KIND_CPU
        assert device.allocated_bytes > 0
        assert {"load", "keyframe", "encode", "denoise"} <= {each.phase for each in device.phase_peaks}
    finally:
        call.cancel()


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["--model", "no-such-model"], 2, "is not a folder, a hub id such as owner/name, or 'pocket'"),
        (["--modle", "x"], 2, "did you mean --model?"),
        (["--device", "cuda:77"], 2, "device is 'cuda:77'"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(flags: list[str], code: int, reason: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    command = [sys.executable, "-m", "halfreel_video", "--port", "0", "--metrics-port", "0", *flags]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=STARTS_WITHIN_S)
    assert ended.returncode == code
    assert sum(reason in line for line in ended.stderr.splitlines()) == 1
    assert "Traceback" not in ended.stderr


# A server in this process, whose model can be made to fail.


@pytest.fixture(scope="module")
def model(folders: tuple[Path, Path]) -> VideoModel:
    settings = VideoSettings(model=str(folders[0]), keyframe_model=str(folders[1]), device="cpu")
    return load_model(settings, find_device("cpu"))


async def rest_of(call: Any) -> list[video_pb2.GenerateResponse]:
    """Reads a call of which something was read already; raises its error."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


class Served:
    """A server with a channel to it."""

    def __init__(self, server: Server, engine: Engine[Any], stub: Any) -> None:
        self.server, self.engine, self.stub = server, engine, stub

    def call(self, **fields: Any) -> Any:
        return self.stub.Generate(video_pb2.GenerateRequest(**(SMALL | fields)))

    async def generate(self, **fields: Any) -> list[video_pb2.GenerateResponse]:
        return [event async for event in self.call(**fields)]

    async def refused(self, **fields: Any) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.generate(**fields)
        return error_from_status(caught.value)


@asynccontextmanager
async def serving(
    model: VideoModel, *, prepared: threading.Event | None = None, settings: Any = None, **limits: int
) -> AsyncIterator[Served]:
    """Serves a model; where `prepared` is given, it is loading until that is set."""
    told = settings or {}
    settings = VideoSettings(port=0, metrics_port=0, device="cpu", grace_s=5, max_waiting_request_count=1, **told)
    memory = MemoryMonitor(model.device)
    engine: Engine[Any] = Engine(name="video", max_waiting_count=settings.max_waiting_request_count, **limits)
    service = VideoService(engine, memory, settings)

    def prepare() -> None:
        if prepared is not None:
            prepared.wait()
        service.model_loaded(model)

    server = Server(settings, service="video")
    server.add(video_pb2_grpc.add_VideoServiceServicer_to_server, service, SERVICE_NAME, engine)
    engine.start(prepare)
    await server.start()
    try:
        # A window that does not grow, so that a client that reads nothing soon leaves events with the server.
        options = (("grpc.http2.bdp_probe", 0),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
            while prepared is None and engine.state is EngineState.LOADING:
                await asyncio.sleep(0.01)
            yield Served(server, engine, video_pb2_grpc.VideoServiceStub(channel))
    finally:
        if prepared is not None:
            prepared.set()
        await server.stop(1.0)
        assert await asyncio.to_thread(engine.close)


async def test_model_loading(model: VideoModel) -> None:
    async with serving(model, prepared=threading.Event()) as served:
        error = await served.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING")
        assert error.retry_after_s > 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.GetModel(video_pb2.GetModelRequest())
        assert error_from_status(caught.value).reason == "MODEL_LOADING"
        assert (await served.stub.MemoryStatus(video_pb2.MemoryStatusRequest())).report.devices


async def test_queue_full(model: VideoModel) -> None:
    async with serving(model) as served:
        running = served.call(step_count=100, frame_count=40)
        await running.read()
        while not served.engine.running_count:
            await asyncio.sleep(0.005)
        waiting = served.call()
        assert (await waiting.read()).queued.waiting_request_count == 0
        error = await served.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert error.retry_after_s > 0
        running.cancel()
        events = await rest_of(waiting)
        assert events[-1].completed.queue_duration.ToTimedelta().total_seconds() > 0


@pytest.fixture
def no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that count the models alone: what the process has beside them differs from run to run."""
    monkeypatch.setattr(Admission, "context_bytes", 0)


async def test_a_plan_is_told_without_rendering(model: VideoModel, no_context: None) -> None:
    async with serving(model) as served:
        clip = video_pb2.GenerateRequest(width_px=64, height_px=64, frame_count=5, guidance_scale=2)
        response = await served.stub.PlanMemory(video_pb2.PlanMemoryRequest(clip=clip))
        plan = response.plan
        assert plan.verdict == gpu_pb2.PLAN_VERDICT_FITS
        assert [phase.phase for phase in plan.phases] == ["keyframe", "encode", "denoise", "decode"]
        assert plan.phases[2].resident_bytes == model.weights.weight_bytes
        assert plan.peak_reserved_bytes == max(phase.peak_reserved_bytes for phase in plan.phases)
        assert {price.lever for price in plan.lever_prices} > {"split_guidance", "stream_weights"}
        assert plan.coefficients == "shipped"
        assert not response.variants
        clip.profile = gpu_pb2.MEMORY_PROFILE_SAVER
        saver = await served.stub.PlanMemory(video_pb2.PlanMemoryRequest(clip=clip, card_bytes=2**30))
        assert saver.plan.peak_reserved_bytes < plan.peak_reserved_bytes
        assert saver.plan.available_bytes == 2**30
        assert saver.levers.offload_idle_parts
        assert not served.engine.running_count


async def test_a_plan_of_a_bad_clip_is_refused_by_field(model: VideoModel) -> None:
    async with serving(model) as served:
        for clip, field in (
            (video_pb2.GenerateRequest(width_px=8), "width_px"),
            (video_pb2.GenerateRequest(profile=77), "profile"),  # type: ignore[arg-type]  # of no version
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.stub.PlanMemory(video_pb2.PlanMemoryRequest(clip=clip))
            error = error_from_status(caught.value)
            assert (error.reason, [each.field for each in error.violations]) == ("INVALID_FIELD", [field])


async def test_what_does_not_fit_is_refused_with_what_would_and_taken_cheaper_where_allowed(
    model: VideoModel, no_context: None
) -> None:
    balanced = {"profile": gpu_pb2.MEMORY_PROFILE_BALANCED, "frame_count": 5}
    async with serving(model) as roomy:
        planned = (await roomy.generate(**balanced))[1].plan
        needed = planned.plan.peak_reserved_bytes
    budget = needed - 1
    async with serving(model, settings={"memory_budget": str(budget)}) as served:
        error = await served.refused(**balanced)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PLAN_REFUSED")
        assert error.metadata["needed_bytes"] == str(needed)
        assert error.metadata["free_bytes"] == str(budget)
        assert int(error.metadata["suggested_needed_bytes"]) <= budget
        # Applied as they are, the suggestions fit.
        suggested = {
            "width_px": int(error.metadata["suggested_width_px"]),
            "height_px": int(error.metadata["suggested_height_px"]),
        }
        assert (await served.generate(frame_count=5, **suggested))[-1].completed.width_px == suggested["width_px"]
        events = await served.generate(**balanced, allow_cheaper=True)
        plan, completed = events[1].plan, events[-1].completed
        assert plan.HasField("variant")
        assert plan.plan.peak_reserved_bytes <= budget
        assert completed.levers == plan.levers == plan.variant.levers
        assert (completed.width_px, completed.height_px) == (plan.variant.width_px, plan.variant.height_px)
        assert completed.frame_count == 5
        # The same levers make the same clip again, whatever the room is then.
        again = await served.generate(frame_count=5, levers=plan.levers)
        assert mp4_of(again) == mp4_of(events)
    async with serving(model, settings={"memory_budget": "1"}) as tight:
        error = await tight.refused(allow_cheaper=True)
        assert error.reason == "PLAN_REFUSED"
        assert "no smaller form of it fits either" in error.message


def test_trades_are_off_unless_named_and_then_told(stub: Any) -> None:
    clips = {}
    for trades in ([], ["partial_guidance"], ["reuse_features"], ["reuse_features", "partial_guidance"]):
        events = generate(stub, image=png(), guidance_scale=3.0, step_count=4, trades=trades)
        assert list(events[-1].completed.trades) == trades
        clips[tuple(trades)] = mp4_of(events)
    assert len({clips[()], clips["partial_guidance",], clips["reuse_features",]}) == 3
    assert mp4_of(generate(stub, image=png(), guidance_scale=3.0, step_count=4)) == clips[()]


def test_the_last_frame_comes_as_it_was_before_encoding_where_it_is_asked_for(stub: Any) -> None:
    plain = generate(stub, image=png(), frame_count=2 * CLIP_FRAME_COUNT - 1)
    assert not any(event.HasField("last_frame_chunk") for event in plain)
    assert (plain[-1].completed.last_frame_size_bytes, plain[-1].completed.last_frame_sha256) == (0, "")
    events = generate(stub, image=png(), frame_count=2 * CLIP_FRAME_COUNT - 1, last_frame=True)
    assert mp4_of(events) == mp4_of(plain)
    frame = b"".join(event.last_frame_chunk.data for event in events)
    completed = events[-1].completed
    assert (completed.last_frame_size_bytes, completed.last_frame_sha256) == (
        len(frame),
        hashlib.sha256(frame).hexdigest(),
    )
    told = np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")).astype(int)
    with av.open(io.BytesIO(mp4_of(events))) as container:
        *others, last = (each.to_ndarray(format="rgb24").astype(int) for each in container.decode(video=0))
    # The MP4 is lossy; of all its frames the last one is nearest.
    assert np.abs(told - last).mean() < min(np.abs(told - other).mean() for other in others)
    # Another clip can start from it: nothing of it is cut or scaled.
    assert generate(stub, image=frame)[-1].HasField("completed")


async def test_while_memory_is_short_levers_are_suggested_with_what_they_save(model: VideoModel) -> None:
    settings = VideoSettings(device="cpu")
    # Short for ever: all but nothing of the host must stay free.
    memory = MemoryMonitor(model.device, limits=MemoryLimits(warn_ratio=1e-9))
    service = VideoService(Engine(name="video", max_waiting_count=1), memory, settings)
    service.model_loaded(model)
    suggestions = {each.code: each.saved_bytes for each in memory.report().suggestions}
    assert {"offload_idle_parts", "stream_weights"} <= suggestions.keys()
    assert all(saved >= 0 for saved in suggestions.values())


async def test_levers_are_used_and_told(model: VideoModel) -> None:
    levers = video_pb2.GenerateResponse.Levers(
        decode_chunk_frame_count=2, split_guidance=True, feed_forward_chunk_count=4, stream_weights=True
    )
    async with serving(model) as served:
        completed = (await served.generate(levers=levers, guidance_scale=2))[-1].completed
        levers.attention_backend = "sdpa"
        assert completed.levers == levers
        assert not completed.rungs
        assert completed.nan_retry_count == 0


async def test_out_of_memory_in_decoding_is_recovered_and_told(
    model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, failures = model.svd.vae.decode, [1, 1]

    def starve_twice(*arguments: Any, **named: Any) -> Any:
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 ...")
        return original(*arguments, **named)

    async with serving(model) as served:
        with monkeypatch.context() as starved:
            starved.setattr(model.svd.vae, "decode", starve_twice)
            completed = (await served.generate())[-1].completed
        assert list(completed.rungs) == ["decode_chunk_4", "decode_chunk_2"]
        assert not (await served.generate())[-1].completed.rungs


async def test_out_of_memory_and_the_server_lives_on(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 ...")

    async with serving(model) as served:
        before = mp4_of(await served.generate())
        with monkeypatch.context() as starved:
            starved.setattr(model.svd.vae, "decode", starve)
            error = await served.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
        assert error.metadata["needed_bytes"] == str(20 * 2**20)
        assert int(error.metadata["free_bytes"]) > 0
        assert mp4_of(await served.generate()) == before


async def test_nan_detected_and_no_black_film(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(model) as served:
        before = mp4_of(await served.generate())
        bias = model.svd.unet.conv_out.bias
        with monkeypatch.context() as broken:
            broken.setattr(bias, "data", torch.full_like(bias, float("nan")))
            error = await served.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "NAN_DETECTED")
        assert error.metadata["dtype"] == "float32"
        assert "precision" in error.message
        assert mp4_of(await served.generate()) == before


async def test_a_bug_shows_nothing_of_itself(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("/secret/path")

    async with serving(model) as served:
        with monkeypatch.context() as broken:
            broken.setattr(model.svd.unet, "forward", fail)
            error = await served.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "secret" not in error.message
        assert await served.generate()


async def test_engine_dead(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async with serving(model) as served:
        with monkeypatch.context() as broken:
            broken.setattr(model.svd.unet, "forward", fail)
            error = await served.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD")
        assert served.engine.state is EngineState.DEAD
        assert (await served.refused()).reason == "ENGINE_DEAD"


async def test_draining(model: VideoModel) -> None:
    async with serving(model) as served:
        running = served.call(frame_count=12)
        await running.read()
        draining = asyncio.create_task(served.engine.drain(20.0))
        await asyncio.sleep(0)
        error = await served.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert (await rest_of(running))[-1].completed.frame_count == 12
        await draining


async def test_slow_reader(model: VideoModel) -> None:
    async with serving(model, max_event_count=3) as served:
        call = served.call(step_count=100, frame_count=12, preview=True)
        await call.read()
        while not served.engine.running_count:
            await asyncio.sleep(0.005)
        while served.engine.running_count:
            await asyncio.sleep(0.005)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest_of(call)
        error = error_from_status(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")


async def test_cancelled_stops_the_model_at_the_next_step(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    original = model.svd.unet.forward

    def count(*arguments: Any, **named: Any) -> Any:
        calls.append(time.monotonic())
        return original(*arguments, **named)

    monkeypatch.setattr(model.svd.unet, "forward", count)
    async with serving(model) as served:
        call = served.call(step_count=100)
        while (await call.read()).WhichOneof("event") != "step":
            pass
        call.cancel()
        done = len(calls)
        while served.engine.running_count:
            await asyncio.sleep(0.001)
        # The step under way, and those that began while the cancel was on its way.
        assert len(calls) - done <= 1 + 0.2 / min(b - a for a, b in itertools.pairwise(calls))
        assert len(calls) < 100
        assert await call.code() is grpc.StatusCode.CANCELLED
