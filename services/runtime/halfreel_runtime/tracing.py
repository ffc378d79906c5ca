"""Traces: which trace the present work belongs to, and spans of it, sent to a collector where one is set.

The context of a trace (W3C traceparent) is kept and passed on whether or not anything is sent. OpenTelemetry is
imported, and a connection opened, only once `start_tracing` was told an endpoint. It does not know what is traced.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from halfreel_runtime.trace_sender import SpanSender

TRACEPARENT_KEY, TRACESTATE_KEY = "traceparent", "tracestate"
# What vendors write there is passed on as it is; W3C asks for 512 characters at least.
_MAX_STATE_CHARACTERS = 512
_STATE = re.compile(r"[\x20-\x7e]*")
# https://www.w3.org/TR/trace-context/: version, trace id, span id, flags; all zeros is no id.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1

Attribute = str | int | float | bool


@dataclass(frozen=True)
class TraceContext:
    """A span as others refer to it.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits.
        sampled: whether whoever began the trace wants its spans.
        state: what tracing systems tell each other (W3C tracestate); passed on, never read.
    """

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""

    @property
    def traceparent(self) -> str:
        """As it travels in metadata."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


# What the present call or job belongs to; None for no trace.
trace_var: ContextVar[TraceContext | None] = ContextVar("trace", default=None)
# The running span of the present context, to note more about; None while nothing is sent.
_span_var: ContextVar[Span | None] = ContextVar("span", default=None)
# The one sender of this process; None while no endpoint is set.
_sender: SpanSender | None = None


def parse_traceparent(text: object, state: object = None) -> TraceContext | None:
    """The context in a traceparent and its tracestate; None where the first is none."""
    match = _TRACEPARENT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    if not isinstance(state, str) or len(state) > _MAX_STATE_CHARACTERS or not _STATE.fullmatch(state):
        state = ""
    return TraceContext(match[1], match[2], bool(int(match[3], 16) & _SAMPLED), state)


def exemplar() -> dict[str, str] | None:
    """The labels that tie an observation to the present trace; None outside of one whose spans are kept."""
    context = trace_var.get()
    return {"trace_id": context.trace_id} if context is not None and context.sampled else None


def start_tracing(endpoint: str, service: str) -> None:
    """Sends this process's spans from now on.

    Args:
        endpoint: of an OTLP collector over gRPC, such as http://127.0.0.1:4317; empty for none, and then nothing is
            imported and nothing connects.
        service: llm, video or gateway.
    """
    global _sender
    if not endpoint:
        return
    from halfreel_runtime.trace_sender import SpanSender

    _sender = SpanSender(endpoint, service)


def stop_tracing() -> None:
    """Sends what is left, for a short time, and sends no more."""
    global _sender
    sender, _sender = _sender, None
    if sender is not None:
        sender.close()


def span_counts() -> dict[str, int]:
    """Spans of this process by what became of them: sent, or dropped because the collector did not take them."""
    sender = _sender
    return {"sent": 0, "dropped": 0} if sender is None else {"sent": sender.sent, "dropped": sender.dropped}


@contextlib.contextmanager
def span(name: str, attributes: Mapping[str, Attribute] | None = None, *, is_call: bool = False) -> Iterator[None]:
    """The work of the block as one span, the parent of all that it begins; costs nothing while nothing is sent.

    An exception that leaves the block marks the span as failed, with the exception's class and nothing of its text.

    Args:
        name: what is done, from a bounded set.
        attributes: what a reader of the trace wants to know.
        is_call: whether it answers a call from outside this process.
    """
    sender = _sender
    if sender is None:
        yield
        return
    parent, outer = trace_var.get(), _span_var.get()
    made, context = sender.begin(name, parent, is_call, attributes or {})
    trace_var.set(context)
    _span_var.set(made)
    try:
        yield
    except BaseException as error:
        sender.fail(made, type(error).__name__)
        raise
    finally:
        # Not by a token: a generator may be closed in another context than the one it began in.
        trace_var.set(parent)
        _span_var.set(outer)
        made.end()


def note(name: str, value: Attribute) -> None:
    """Adds an attribute to the span that the present work is part of, if there is one."""
    if (running := _span_var.get()) is not None:
        running.set_attribute(name, value)


def record_span(name: str, began_s: float, ended_s: float, attributes: Mapping[str, Attribute] | None = None) -> None:
    """A span of work that is over, in the present trace.

    Args:
        name: what was done, from a bounded set.
        began_s: on the clock of time.monotonic, as the next.
        ended_s: when it ended.
        attributes: what a reader of the trace wants to know.
    """
    sender = _sender
    if sender is None:
        return
    offset_ns = time.time_ns() - time.monotonic_ns()
    made, _ = sender.begin(name, trace_var.get(), False, attributes or {}, began_ns=offset_ns + round(began_s * 1e9))
    made.end(end_time=offset_ns + round(ended_s * 1e9))


@contextlib.contextmanager
def joined(traceparent: str | None, state: str | None = None) -> Iterator[None]:
    """The work of the block belongs to the trace of a traceparent and its tracestate, where there is one."""
    before = trace_var.get()
    if (context := parse_traceparent(traceparent, state)) is not None:
        trace_var.set(context)
    try:
        yield
    finally:
        trace_var.set(before)
