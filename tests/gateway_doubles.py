"""Small real gRPC servers that stand for the language model and the video server.

Each call takes the next behaviour of its script; with none left it behaves as it should. What they send is real: JSON
that follows the schema, and an MP4 that plays.
"""

from __future__ import annotations

import hashlib
import io
import json
import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_runtime import errors

LLM, VIDEO = "halfreel.llm.v1.LlmService", "halfreel.video.v1.VideoService"
CHUNK_BYTES = 4096


def make_clip(path: Path, request: Any, *, crf: str = "18", noisy: bool = False) -> bytes:
    """A clip whose pictures follow from the seed."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        options = {"crf": crf, "preset": "ultrafast", "threads": "1"}
        stream = container.add_stream("libx264", rate=request.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = request.width_px, request.height_px, "yuv420p"
        shape = (request.height_px, request.width_px, 3)
        random = np.random.default_rng(request.seed)
        base = random.integers(0, 255, shape, dtype=np.uint8)
        for index in range(request.frame_count):
            picture = random.integers(0, 255, shape, dtype=np.uint8) if noisy else np.roll(base, 2 * index, axis=1)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def last_frame(path: Path) -> bytes:
    """The PNG of a clip's last frame."""
    with av.open(str(path)) as container:
        *_, frame = container.decode(video=0)
    written = io.BytesIO()
    frame.to_image().save(written, format="PNG")
    return written.getvalue()


class Behaviours:
    """What the next calls do: "ok" or a fault, each at most once; "hold" waits until the test lets go."""

    def __init__(self) -> None:
        self._next: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.requests: list[Any] = []
        self.cancelled = threading.Event()
        self.held = threading.Event()
        self.let_go = threading.Event()

    def script(self, *names: str) -> None:
        for name in names:
            self._next.put(name)

    def take(self) -> str:
        try:
            return self._next.get_nowait()
        except queue.Empty:
            return "ok"

    def reset(self) -> None:
        while not self._next.empty():
            self.take()
        self.requests.clear()
        self.cancelled.clear()
        self.held.clear()
        self.let_go.clear()

    def hold(self, context: grpc.ServicerContext) -> None:
        """Is silent until the test lets go, or the caller does."""
        self.held.set()
        while context.is_active() and not self.let_go.wait(0.02):
            pass
        if not context.is_active():
            self.cancelled.set()


def fail(context: grpc.ServicerContext, error: errors.HalfreelError) -> None:
    context.abort_with_status(rpc_status.to_status(errors.status_of(error, "test")))


def faulty(context: grpc.ServicerContext, behaviour: str) -> None:
    """Ends the call the way the behaviour says, when it is one that both servers know."""
    if behaviour == "queue_full":
        fail(context, errors.QueueFull("1 request waits; at most 1 may.", retry_after_s=0.2))
    if behaviour == "invalid":
        fail(context, errors.InvalidArgument("step_count is 99; it must be between 1 and 9."))
    if behaviour == "internal":
        fail(context, errors.Internal("Internal error; the server's log has it.", metadata={"request_id": "test"}))
    if behaviour == "gone":
        context.abort(grpc.StatusCode.UNAVAILABLE, "ipv4:127.0.0.1:1: connection refused")
    if behaviour == "proxy":
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "http://10.0.0.1/secret")


class LlmDouble(llm_pb2_grpc.LlmServiceServicer):
    def __init__(self) -> None:
        self.behaviours = Behaviours()
        self.context_token_count = 8192

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> llm_pb2.GetModelResponse:
        return llm_pb2.GetModelResponse(model_id="double", context_token_count=self.context_token_count)

    def MemoryStatus(self, request: Any, context: grpc.ServicerContext) -> llm_pb2.MemoryStatusResponse:
        return llm_pb2.MemoryStatusResponse(report=report(gpu_pb2.MODEL_STATE_AWAKE))

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[llm_pb2.GenerateResponse]:
        self.behaviours.requests.append(request)
        behaviour = self.behaviours.take()
        faulty(context, behaviour)
        prompt = sum(len(message.content) for message in request.messages)
        if prompt + request.max_output_token_count > self.context_token_count:
            figures = {
                "prompt_token_count": str(prompt),
                "max_output_token_count": str(request.max_output_token_count),
                "context_token_count": str(self.context_token_count),
            }
            fail(context, errors.InvalidArgument("The prompt is too long.", reason="PROMPT_TOO_LONG", metadata=figures))
        yield llm_pb2.GenerateResponse(queued=llm_pb2.GenerateResponse.Queued())
        text = {"nonsense": "once upon a time", "empty": "", "blank": script_json(request, picture="\n\t ")}.get(
            behaviour, script_json(request)
        )
        for start in range(0, len(text), 16):
            piece = llm_pb2.GenerateResponse.TextDelta(text=text[start : start + 16], token_count=4)
            yield llm_pb2.GenerateResponse(text_delta=piece)
            if behaviour == "hold" and start == 16:
                self.behaviours.hold(context)
            if behaviour == "die" and start == 16:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if behaviour.endswith("_second") and text.find("},{", 0, start + 16) != -1:  # one scene is whole
                if behaviour == "hold_second":
                    self.behaviours.hold(context)
                elif behaviour == "die_second":
                    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                behaviour = "ok"
        cut = behaviour == "cut"
        yield llm_pb2.GenerateResponse(
            completed=llm_pb2.GenerateResponse.Completed(
                finish_reason=llm_pb2.FINISH_REASON_LENGTH if cut else llm_pb2.FINISH_REASON_END_OF_TEXT,
                seed=request.seed,
                phase_peaks=[peak("prefill"), peak("decode")],
            )
        )


def script_json(request: Any, **changes: str) -> str:
    scenes = json.loads(request.json_schema)["properties"]["scenes"]
    seconds = scenes["items"]["properties"]["seconds"]["minimum"]
    count = scenes["minItems"] if scenes["minItems"] == scenes["maxItems"] else 2
    written = [
        {"narration": f"Narration {i} {{of}} {request.seed % 97}", "picture": f"picture {i}", "seconds": seconds}
        | {"motion": "still" if i == 0 else "left"}
        | changes
        for i in range(count)
    ]
    return json.dumps({"title": "A film of doubles", "scenes": written}, separators=(",", ":"))


class VideoDouble(video_pb2_grpc.VideoServiceServicer):
    """Renders small clips; `step_s` is what a step takes."""

    def __init__(self, folder: Path) -> None:
        self.behaviours = Behaviours()
        self.step_s = 0.0
        self.crf = "18"
        self.noisy = False
        self.words_only = False
        self.model_state = gpu_pb2.MODEL_STATE_AWAKE
        self._folder = folder
        self._lock = threading.Lock()
        self._made = 0
        self.running = 0
        self.most_running = 0

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> video_pb2.GetModelResponse:
        return video_pb2.GetModelResponse(
            model_id="double",
            default_width_px=96,
            default_height_px=64,
            default_frame_count=14,
            default_step_count=3,
            default_fps=7,
            max_width_px=512,
            max_height_px=512,
            max_frame_count=70,
            trades=["partial_guidance", "reuse_features"],
            words_only=self.words_only,
        )

    def MemoryStatus(self, request: Any, context: grpc.ServicerContext) -> video_pb2.MemoryStatusResponse:
        return video_pb2.MemoryStatusResponse(report=report(self.model_state))

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[video_pb2.GenerateResponse]:
        response = video_pb2.GenerateResponse
        self.behaviours.requests.append(request)
        behaviour = self.behaviours.take()
        faulty(context, behaviour)
        yield response(queued=response.Queued())
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self._made += 1
            path = self._folder / f"{self._made}.mp4"
        try:
            yield from self._render(request, context, behaviour, path)
        finally:
            with self._lock:
                self.running -= 1

    def _render(self, request: Any, context: Any, behaviour: str, path: Path) -> Iterator[Any]:
        response = video_pb2.GenerateResponse
        if behaviour == "refused":
            figures = {"needed_bytes": "9", "free_bytes": "5", "suggested_width_px": "64"}
            fail(context, errors.ResourceExhausted("It needs 9 bytes.", reason="PLAN_REFUSED", metadata=figures))
        levers = response.Levers(decode_chunk_frame_count=4, attention_backend="sdpa", feed_forward_chunk_count=1)
        if request.HasField("levers"):
            levers = request.levers
        if behaviour.startswith("plan"):
            planned = response.Planned(levers=levers)
            if behaviour.startswith("plan_smaller") or request.allow_cheaper:
                # What fits is half the size that was asked for first; a request for that is not made smaller again.
                width, height = min(request.width_px, 64), min(request.height_px, 64)
                planned.variant.CopyFrom(video_pb2.Variant(width_px=width, height_px=height, levers=levers))
                asked, request = request, video_pb2.GenerateRequest()
                request.CopyFrom(asked)
                request.width_px, request.height_px = width, height
            yield response(plan=planned)
        yield response(stage=response.StageStarted(stage=video_pb2.STAGE_DENOISE, segment_count=1))
        count = request.step_count if request.HasField("step_count") else 3
        for index in range(1, count + 1):
            time.sleep(self.step_s)
            yield response(step=response.Step(index=index, count=count))
            if request.preview:
                yield response(preview=response.Preview(jpeg=b"\xff\xd8\xff jpeg", step_index=index))
            if behaviour == "hold" and index == 1:
                self.behaviours.hold(context)
            if behaviour in {"die", "plan_die", "plan_smaller_die"} and index == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        data = make_clip(path, request, crf=self.crf, noisy=self.noisy)
        if behaviour == "junk":
            data = b"\0" * 5000
        digest = hashlib.sha256(data).hexdigest()
        if behaviour == "corrupt":
            data = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        for start in range(0, len(data), CHUNK_BYTES):
            offset = start + (7 if behaviour == "gap" and start else 0)
            chunk = response.VideoChunk(offset_bytes=offset, data=data[start : start + CHUNK_BYTES])
            yield response(video_chunk=chunk)
        if behaviour == "unfinished":
            return
        completed = response.Completed(
            size_bytes=len(data), sha256=digest, seed=request.seed, levers=levers, trades=request.trades
        )
        if request.last_frame and behaviour != "no_frame":
            frame = last_frame(path)
            for start in range(0, len(frame), CHUNK_BYTES):
                piece = response.LastFrameChunk(offset_bytes=start, data=frame[start : start + CHUNK_BYTES])
                yield response(last_frame_chunk=piece)
            completed.last_frame_size_bytes = len(frame)
            completed.last_frame_sha256 = hashlib.sha256(frame).hexdigest()
            if behaviour == "corrupt_frame":
                completed.last_frame_sha256 = hashlib.sha256(b"").hexdigest()
        completed.rungs.extend(["decode_chunk_2"] if behaviour == "plan" else [])
        for stage in (video_pb2.STAGE_KEYFRAME, video_pb2.STAGE_DENOISE):
            completed.stage_durations.add(stage=stage).duration.FromMilliseconds(5)
        completed.phase_peaks.extend([peak("denoise"), peak("decode")])
        yield response(completed=completed)


def peak(phase: str) -> gpu_pb2.PhasePeak:
    return gpu_pb2.PhasePeak(phase=phase, peak=gpu_pb2.MemoryPeak(allocated_bytes=5, reserved_bytes=7))


def report(state: gpu_pb2.ModelState.ValueType) -> gpu_pb2.MemoryReport:
    devices = [gpu_pb2.DeviceMemory(gpu_uuid="cpu", allocated_bytes=5)]
    return gpu_pb2.MemoryReport(devices=devices, model_state=state)


class Serving:
    """A double on a port of its own, which can go down and come back."""

    def __init__(self, service: str, double: Any) -> None:
        self._service = service
        self.double = double
        self.port = 0
        self._server: grpc.Server | None = None
        self.up()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def up(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        if self._service == LLM:
            llm_pb2_grpc.add_LlmServiceServicer_to_server(self.double, server)
        else:
            video_pb2_grpc.add_VideoServiceServicer_to_server(self.double, server)
        healthy = health.HealthServicer()
        healthy.set(self._service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        server.start()
        self._server = server

    def down(self) -> None:
        """As a kill does: running calls break, and nobody listens."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None
