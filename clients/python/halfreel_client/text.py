"""Text from a model server: requests, events and the model of halfreel.llm.v1, as values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from halfreel.llm.v1 import llm_pb2
from halfreel_client.clock import member_of, seconds_of
from halfreel_client.memory import PhasePeak, phase_peaks_from


class Role(StrEnum):
    """Who says a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class FinishReason(StrEnum):
    """Why a reply ended. Under a JSON schema the text is complete only at END_OF_TEXT."""

    UNKNOWN = "unknown"
    END_OF_TEXT = "end_of_text"
    LENGTH = "length"
    STOP_STRING = "stop_string"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """What to write; None leaves the choice to the model. Limits: see llm.proto."""

    messages: tuple[Message, ...]
    request_id: str = ""
    max_output_token_count: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: str = ""


@dataclass(frozen=True, slots=True)
class Queued:
    """The request was accepted; so many others run before it."""

    waiting_request_count: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the reply: whole characters, and the tokens they stand for."""

    text: str
    token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCompleted:
    """The whole reply was sent."""

    finish_reason: FinishReason
    prompt_token_count: int
    output_token_count: int
    seed: int
    queue_duration_s: float
    time_to_first_token_s: float
    generate_duration_s: float
    phase_peaks: tuple[PhasePeak, ...]
    dtype: str
    cached_prompt_token_count: int
    forced_token_count: int
    speculated_token_count: int
    rungs: tuple[str, ...]


TextEvent = Queued | TextDelta | TextCompleted


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmModel:
    """The language model that a server owns."""

    model_id: str
    revision: str
    architecture: str
    dtype: str
    device: str
    parameter_count: int
    weight_bytes: int
    context_token_count: int
    default_temperature: float
    default_top_p: float
    default_top_k: int
    default_max_output_token_count: int
    max_waiting_request_count: int
    contract_version: str
    slot_count: int
    weight_precision: str
    kv_cache_bytes_per_token: int


def text_request(request: TextRequest) -> llm_pb2.GenerateRequest:
    """The message of a request."""
    return llm_pb2.GenerateRequest(
        request_id=request.request_id,
        messages=[
            llm_pb2.Message(role=llm_pb2.Role.Value(f"ROLE_{item.role.upper()}"), content=item.content)
            for item in request.messages
        ],
        max_output_token_count=request.max_output_token_count,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        stop=request.stop,
        json_schema=request.json_schema,
    )


def text_event_from(message: llm_pb2.GenerateResponse) -> TextEvent | None:
    """The event of a message; None for a kind of event that is newer than this client."""
    match message.WhichOneof("event"):
        case "queued":
            return Queued(message.queued.waiting_request_count)
        case "text_delta":
            return TextDelta(message.text_delta.text, message.text_delta.token_count)
        case "completed":
            end = message.completed
            return TextCompleted(
                finish_reason=member_of(FinishReason, llm_pb2.FinishReason, end.finish_reason, "FINISH_REASON_"),
                prompt_token_count=end.prompt_token_count,
                output_token_count=end.output_token_count,
                seed=end.seed,
                queue_duration_s=seconds_of(end.queue_duration),
                time_to_first_token_s=seconds_of(end.time_to_first_token),
                generate_duration_s=seconds_of(end.generate_duration),
                phase_peaks=phase_peaks_from(end.phase_peaks),
                dtype=end.dtype,
                cached_prompt_token_count=end.cached_prompt_token_count,
                forced_token_count=end.forced_token_count,
                speculated_token_count=end.speculated_token_count,
                rungs=tuple(end.rungs),
            )
    return None


def llm_model_from(message: llm_pb2.GetModelResponse) -> LlmModel:
    """The model of a message."""
    return LlmModel(**{field.name: getattr(message, field.name) for field in fields(LlmModel)})
