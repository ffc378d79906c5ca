"""The blocking clients of the two model servers, for those who call a model without a gateway."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel.video.v1 import video_pb2, video_pb2_grpc
from halfreel_client.channel import DEFAULT_LLM_ADDRESS, DEFAULT_VIDEO_ADDRESS, open_channel
from halfreel_client.clip import (
    ClipEvent,
    ClipRequest,
    VideoModel,
    clip_event_from,
    clip_request,
    video_model_from,
)
from halfreel_client.credentials import Credentials
from halfreel_client.errors import raising
from halfreel_client.memory import MemoryReport, report_from
from halfreel_client.text import LlmModel, TextEvent, TextRequest, llm_model_from, text_event_from, text_request


class _ModelClient:
    """What both have: a channel, and an end."""

    def __init__(self, address: str, credentials: Credentials | None, timeout_s: float) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._channel = open_channel(address, credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls that run are cancelled."""
        self._channel.close()


class LlmClient(_ModelClient):
    """Calls a language model server.

    Args:
        address: the server, as host:port.
        credentials: certificates and token, for a server that asks for them.
        timeout_s: limit of every call but `generate`, in seconds.

    Every method raises HalfreelError, see `halfreel_client.errors`.
    """

    def __init__(
        self,
        address: str = DEFAULT_LLM_ADDRESS,
        *,
        credentials: Credentials | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(address, credentials, timeout_s)
        self._stub = llm_pb2_grpc.LlmServiceStub(self._channel)

    def generate(self, request: TextRequest, *, timeout_s: float | None = None) -> Iterator[TextEvent]:
        """Writes text: queued, deltas, completed. Leaving the iterator stops the model at the next token."""
        call = self._stub.Generate(text_request(request), timeout=timeout_s)
        try:
            with raising(self.address):
                for message in call:
                    if (event := text_event_from(message)) is not None:
                        yield event
        finally:
            call.cancel()

    def model(self) -> LlmModel:
        """The model, its limits and its defaults."""
        with raising(self.address):
            return llm_model_from(self._stub.GetModel(llm_pb2.GetModelRequest(), timeout=self._timeout_s))

    def memory(self) -> MemoryReport:
        """The memory of this server; never waits for a running generation."""
        with raising(self.address):
            reply = self._stub.MemoryStatus(llm_pb2.MemoryStatusRequest(), timeout=self._timeout_s)
            return report_from(reply.report)


class VideoClient(_ModelClient):
    """Calls a video model server.

    Args:
        address: the server, as host:port.
        credentials: certificates and token, for a server that asks for them.
        timeout_s: limit of every call but `generate`, in seconds.

    Every method raises HalfreelError, see `halfreel_client.errors`.
    """

    def __init__(
        self,
        address: str = DEFAULT_VIDEO_ADDRESS,
        *,
        credentials: Credentials | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(address, credentials, timeout_s)
        self._stub = video_pb2_grpc.VideoServiceStub(self._channel)

    def generate(self, request: ClipRequest, *, timeout_s: float | None = None) -> Iterator[ClipEvent]:
        """Renders a clip: queued, stages and steps, pieces of the MP4 in order, completed.

        Leaving the iterator stops the model at the next denoising step.
        """
        call = self._stub.Generate(clip_request(request), timeout=timeout_s)
        try:
            with raising(self.address):
                for message in call:
                    if (event := clip_event_from(message)) is not None:
                        yield event
        finally:
            call.cancel()

    def model(self) -> VideoModel:
        """The models, their limits and their defaults."""
        with raising(self.address):
            return video_model_from(self._stub.GetModel(video_pb2.GetModelRequest(), timeout=self._timeout_s))

    def memory(self) -> MemoryReport:
        """The memory of this server; never waits for a running generation."""
        with raising(self.address):
            reply = self._stub.MemoryStatus(video_pb2.MemoryStatusRequest(), timeout=self._timeout_s)
            return report_from(reply.report)
