"""From what the model says to messages of the contract."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from halfreel.llm.v1 import llm_pb2
from halfreel_llm.precision import dtype_name
from halfreel_llm.reply import Finished, FinishReason, TextDelta, TextRequest
from halfreel_llm.served_model import ServedModel
from halfreel_runtime.engine import Queued

CONTRACT_VERSION = "1.0"

Event = TextDelta | Finished
Response = llm_pb2.GenerateResponse

_REASONS = {
    FinishReason.END_OF_TEXT: llm_pb2.FINISH_REASON_END_OF_TEXT,
    FinishReason.LENGTH: llm_pb2.FINISH_REASON_LENGTH,
    FinishReason.STOP_STRING: llm_pb2.FINISH_REASON_STOP_STRING,
}


def merge(unread: Event, new: Event) -> Event | None:
    """Joins text that lies unread with the text after it."""
    if isinstance(unread, TextDelta) and isinstance(new, TextDelta):
        return TextDelta(unread.text + new.text, unread.token_count + new.token_count)
    return None


def response(event: Queued | Event, request: TextRequest, model: ServedModel, accepted_s: float) -> Response:
    """Turns one event into its message; `accepted_s` is when the call came, on the clock of `time.monotonic`."""
    if isinstance(event, TextDelta):  # one a token, so set in place: half the time of a message made and copied in
        message = Response()
        delta = message.text_delta
        delta.text, delta.token_count = event
        return message
    if isinstance(event, Queued):
        return Response(queued=Response.Queued(waiting_request_count=event.waiting_request_count))
    return Response(
        completed=Response.Completed(
            finish_reason=_REASONS[event.reason],
            prompt_token_count=len(request.prompt_ids),
            output_token_count=event.output_token_count,
            seed=request.sampling.seed,
            queue_duration=_duration(event.started_s - accepted_s),
            time_to_first_token=_duration(event.first_token_s - event.started_s),
            generate_duration=_duration(event.last_token_s - event.started_s),
            phase_peaks=event.phase_peaks,
            dtype=dtype_name(model.text_model.dtype),
            cached_prompt_token_count=event.cached_prompt_token_count,
            rungs=event.rungs,
            forced_token_count=event.forced_token_count,
            speculated_token_count=event.speculated_token_count,
        )
    )


def model_response(model: ServedModel, max_waiting_request_count: int) -> llm_pb2.GetModelResponse:
    """Tells the model, its limits and its defaults."""
    text_model, defaults = model.text_model, model.defaults
    return llm_pb2.GetModelResponse(
        model_id=model.checkpoint.model_id,
        revision=model.checkpoint.revision,
        architecture=model.checkpoint.architecture.model_class.__name__,
        dtype=dtype_name(text_model.dtype),
        device=str(text_model.device),
        parameter_count=text_model.network.parameter_count,
        weight_bytes=text_model.network.weight_bytes,
        context_token_count=model.context_token_count,
        default_temperature=defaults.temperature,
        default_top_p=defaults.top_p,
        default_top_k=defaults.top_k,
        default_max_output_token_count=defaults.max_output_tokens,
        max_waiting_request_count=max_waiting_request_count,
        contract_version=CONTRACT_VERSION,
        slot_count=text_model.slot_count,
        weight_precision=text_model.network.weight_precision,
        kv_cache_bytes_per_token=text_model.cache_bytes_per_token,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
