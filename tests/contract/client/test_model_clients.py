"""The thin clients of the two model servers, blocking and asyncio, against small real servers on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_client import (
    AsyncLlmClient,
    AsyncVideoClient,
    ClipCompleted,
    ClipRequest,
    FinishReason,
    LlmClient,
    Message,
    Preview,
    Queued,
    ResourceExhausted,
    Role,
    Stage,
    StageStarted,
    Step,
    TextCompleted,
    TextDelta,
    TextRequest,
    VideoChunk,
    VideoClient,
)
from halfreel_runtime import errors

CLIP = b"\0\1\2" * 1000
MESSAGES = (Message(Role.SYSTEM, "be brief"), Message(Role.USER, "hello"))


class Models(llm_pb2_grpc.LlmServiceServicer, video_pb2_grpc.VideoServiceServicer):
    """Both services; remembers what it was asked, and whether a caller left."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.left = threading.Event()

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:
        self.asked.append(request)
        if isinstance(request, llm_pb2.GenerateRequest):
            yield from self.write(request, context)
        else:
            yield from self.render(request)

    def write(self, request: llm_pb2.GenerateRequest, context: Any) -> Iterator[llm_pb2.GenerateResponse]:
        new = llm_pb2.GenerateResponse
        if request.request_id == "full":
            full = errors.QueueFull("16 requests wait already", retry_after_s=0.5)
            context.abort_with_status(rpc_status.to_status(errors.status_of(full, "full")))
        if request.request_id == "endless":
            assert context.add_callback(self.left.set)
        yield new(queued=new.Queued(waiting_request_count=2))
        if request.request_id == "endless":
            while context.is_active():
                yield new(text_delta=new.TextDelta(text="and ", token_count=1))
        yield new(text_delta=new.TextDelta(text="hé", token_count=2))
        completed = new.Completed(
            finish_reason=llm_pb2.FINISH_REASON_LENGTH, output_token_count=2, seed=request.seed, dtype="float16",
            phase_peaks=[gpu_pb2.PhasePeak(phase="decode", peak=gpu_pb2.MemoryPeak(allocated_bytes=5))],
        )  # fmt: skip
        completed.time_to_first_token.FromMilliseconds(250)
        yield new(completed=completed)

    def render(self, request: video_pb2.GenerateRequest) -> Iterator[video_pb2.GenerateResponse]:
        new = video_pb2.GenerateResponse
        yield new(queued=new.Queued())
        yield new(stage=new.StageStarted(stage=video_pb2.STAGE_DENOISE, segment_index=0, segment_count=1))
        yield new(step=new.Step(index=1, count=1))
        yield new(preview=new.Preview(jpeg=b"jpeg", step_index=1))
        yield new(video_chunk=new.VideoChunk(offset_bytes=0, data=CLIP))
        completed = new.Completed(
            size_bytes=len(CLIP), sha256=hashlib.sha256(CLIP).hexdigest(), frame_count=8, seed=request.seed,
            levers=new.Levers(decode_chunk_frame_count=4, attention_backend="sdpa"),
        )  # fmt: skip
        completed.stage_durations.add(stage=video_pb2.STAGE_MUX).duration.FromMilliseconds(20)
        yield new(completed=completed)


class Llm(Models):
    def GetModel(self, request: Any, context: Any) -> llm_pb2.GetModelResponse:
        return llm_pb2.GetModelResponse(model_id="pocket", context_token_count=2048, contract_version="1.0")

    def MemoryStatus(self, request: Any, context: Any) -> llm_pb2.MemoryStatusResponse:
        return llm_pb2.MemoryStatusResponse(report=gpu_pb2.MemoryReport(host=gpu_pb2.HostMemory(total_bytes=7)))


class Video(Models):
    def GetModel(self, request: Any, context: Any) -> video_pb2.GetModelResponse:
        return video_pb2.GetModelResponse(model_id="pocket", keyframe_model_id="pocket", max_frame_count=100)

    def MemoryStatus(self, request: Any, context: Any) -> video_pb2.MemoryStatusResponse:
        return video_pb2.MemoryStatusResponse(report=gpu_pb2.MemoryReport(host=gpu_pb2.HostMemory(total_bytes=8)))


@pytest.fixture
def llm() -> Iterator[tuple[str, Llm]]:
    servicer = Llm()
    server = grpc.server(ThreadPoolExecutor(4))
    llm_pb2_grpc.add_LlmServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(0).wait()


@pytest.fixture
def video() -> Iterator[tuple[str, Video]]:
    servicer = Video()
    server = grpc.server(ThreadPoolExecutor(4))
    video_pb2_grpc.add_VideoServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(0).wait()


def test_text(llm: tuple[str, Llm]) -> None:
    address, servicer = llm
    request = TextRequest(
        messages=MESSAGES, max_output_token_count=2, temperature=0.0, seed=9, stop=("\n",), json_schema="{}"
    )
    with LlmClient(address) as client:
        queued, delta, completed = client.generate(request)
        assert client.model().context_token_count == 2048
        assert client.memory().host.total_bytes == 7
    assert (queued, delta) == (Queued(2), TextDelta("hé", 2))
    assert isinstance(completed, TextCompleted)
    assert completed.finish_reason is FinishReason.LENGTH
    assert (completed.seed, completed.time_to_first_token_s, completed.phase_peaks[0].phase) == (9, 0.25, "decode")
    (asked,) = servicer.asked
    assert asked.messages[0] == llm_pb2.Message(role=llm_pb2.ROLE_SYSTEM, content="be brief")
    assert asked.HasField("temperature")  # 0 is a choice
    assert not asked.HasField("top_k")


async def test_text_asyncio(llm: tuple[str, Llm]) -> None:
    async with AsyncLlmClient(llm[0]) as client:
        events = [event async for event in client.generate(TextRequest(messages=MESSAGES))]
        assert (await client.model()).model_id == "pocket"
        assert (await client.memory()).host.total_bytes == 7
    assert [type(event) for event in events] == [Queued, TextDelta, TextCompleted]


def test_leaving_stops_the_model(llm: tuple[str, Llm]) -> None:
    address, servicer = llm
    with LlmClient(address) as client:
        events = client.generate(TextRequest(messages=MESSAGES, request_id="endless"))
        next(events)
        next(events)
        events.close()
        assert servicer.left.wait(20)


async def test_leaving_stops_the_model_asyncio(llm: tuple[str, Llm]) -> None:
    address, servicer = llm
    async with AsyncLlmClient(address) as client:
        events = client.generate(TextRequest(messages=MESSAGES, request_id="endless"))
        await anext(events)
        await events.aclose()
        assert await asyncio.to_thread(servicer.left.wait, 5)


def test_a_full_queue(llm: tuple[str, Llm]) -> None:
    with LlmClient(llm[0]) as client, pytest.raises(ResourceExhausted) as caught:
        next(client.generate(TextRequest(messages=MESSAGES, request_id="full")))
    assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 0.5)


def test_clip(video: tuple[str, Video]) -> None:
    address, servicer = video
    with VideoClient(address) as client:
        events = list(client.generate(ClipRequest(prompt="a circle", width_px=64, seed=3, preview=True)))
        assert client.model().max_frame_count == 100
        assert client.memory().host.total_bytes == 8
    assert events[:5] == [
        Queued(0),
        StageStarted(Stage.DENOISE, 0, 1),
        Step(1, 1, 0.0, 0.0),
        Preview(b"jpeg", 1),
        VideoChunk(0, CLIP),
    ]
    completed = events[5]
    assert isinstance(completed, ClipCompleted)
    assert (completed.seed, completed.levers.decode_chunk_frame_count) == (3, 4)
    assert [(item.stage, item.duration_s) for item in completed.stage_durations] == [(Stage.MUX, 0.02)]
    assert servicer.asked == [video_pb2.GenerateRequest(prompt="a circle", width_px=64, seed=3, preview=True)]


async def test_clip_asyncio(video: tuple[str, Video]) -> None:
    async with AsyncVideoClient(video[0]) as client:
        events = [event async for event in client.generate(ClipRequest(image=b"\x89PNG"))]
        assert (await client.model()).keyframe_model_id == "pocket"
        assert (await client.memory()).host.total_bytes == 8
    assert isinstance(events[-1], ClipCompleted)
