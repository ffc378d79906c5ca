"""Counts replies: verdicts, tokens, times, shortages, predictions; and tells the parts of each as spans of its trace.

It does not know the model, nor how the figures are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from halfreel_llm.reply import Finished, TextRequest
from halfreel_llm.request_reader import TOO_LONG_REASON
from halfreel_runtime.errors import HalfreelError, OutOfMemory
from halfreel_runtime.instruments import OTHER, Instruments
from halfreel_runtime.plan import PlanRefused, Verdict
from halfreel_runtime.tracing import record_span

# What this server gives up to go on when memory runs out.
RUNGS = ("smaller_batch",)
_NAN_REASON = "NAN_DETECTED"


@contextmanager
def refusals_counted(instruments: Instruments) -> Iterator[None]:
    """Counts a reply that is refused for want of room: in the context, which is what a slot holds, or by its plan."""
    try:
        yield
    except HalfreelError as error:
        if isinstance(error, PlanRefused) or error.reason == TOO_LONG_REASON:
            instruments.admission("refused")
        raise


def count_admitted(instruments: Instruments, verdict: Verdict) -> None:
    """A reply was let in, by the verdict of its plan."""
    instruments.admission(verdict.name.lower())


def count_reply(instruments: Instruments, request: TextRequest, finished: Finished, accepted_s: float) -> None:
    """A reply is finished.

    Args:
        instruments: count it.
        request: what was asked for.
        finished: what it took.
        accepted_s: when the call came, on the clock of `time.monotonic`.
    """
    prompt_tokens = len(request.prompt_ids)
    started_s, first_s, last_s = finished.started_s, finished.first_token_s, finished.last_token_s
    instruments.reply(
        prompt_tokens=prompt_tokens,
        output_tokens=finished.output_token_count,
        first_token_s=first_s - started_s,
        decode_s=last_s - first_s,
    )
    instruments.stage_took("prefill", first_s - started_s)
    instruments.stage_took("decode", last_s - first_s)
    for peak in finished.phase_peaks:
        instruments.prediction(peak.phase, peak.predicted_reserved_bytes, peak.peak.reserved_bytes)
    for rung in finished.rungs:
        instruments.rung(rung)
        instruments.out_of_memory("decode", recovered=True)
    record_span("queue", accepted_s, started_s)
    record_span("prefill", started_s, first_s, {"halfreel.prompt_token_count": prompt_tokens})
    record_span("decode", first_s, last_s, {"halfreel.output_token_count": finished.output_token_count})


@contextmanager
def failures_counted(instruments: Instruments) -> Iterator[None]:
    """Counts a reply that ends for want of memory, or because the model's numbers were not finite."""
    try:
        yield
    except OutOfMemory:
        instruments.out_of_memory(OTHER, recovered=False)
        raise
    except HalfreelError as error:
        if error.reason == _NAN_REASON:
            instruments.nan()
        raise
