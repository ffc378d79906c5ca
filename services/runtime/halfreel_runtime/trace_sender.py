"""Sends finished spans to an OTLP collector, from a thread of its own and never more than the collector takes.

Whoever ends a span only puts it on a bounded queue; what finds no room, or is not taken, is counted and gone. The one
module that imports OpenTelemetry. It does not know what is traced.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from halfreel_runtime.tracing import Attribute, TraceContext

_logger = logging.getLogger(__name__)

# A film of 30 scenes has some 200 spans: ten of them, with a collector that is away for a moment.
MAX_WAITING_COUNT = 2048
_BATCH_COUNT = 512
# Spans wait so long for company.
_SEND_EVERY_S = 1.0
# A batch that a collector does not take in this time is dropped; nobody but the sending thread waits.
_TIMEOUT_S = 5
# At the end of the process.
_CLOSE_S = 2.0


class SpanSender:
    """Makes spans and sends them.

    Args:
        endpoint: http://host:port, or https:// for TLS by the system's certificates.
        service: llm, video or gateway.
    """

    def __init__(self, endpoint: str, service: str) -> None:
        # Each try that fails would be two lines of its log, every second; ours tells once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_TIMEOUT_S
        )
        self._queue = _Queue(self._exporter)
        provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),
            resource=Resource({"service.name": f"halfreel-{service}"}),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._queue)
        self._tracer = provider.get_tracer("halfreel")

    @property
    def sent(self) -> int:
        """Spans that the collector took."""
        return self._queue.sent

    @property
    def dropped(self) -> int:
        """Spans that nobody will see."""
        return self._queue.dropped

    def begin(
        self,
        name: str,
        parent: TraceContext | None,
        is_call: bool,
        attributes: Mapping[str, Attribute],
        *,
        began_ns: int | None = None,
    ) -> tuple[Span, TraceContext]:
        """A span that the caller must end, and how others refer to it."""
        kind = SpanKind.SERVER if is_call else SpanKind.INTERNAL
        made = self._tracer.start_span(name, _context(parent), kind, attributes, start_time=began_ns)
        context = made.get_span_context()
        sampled = bool(context.trace_flags & TraceFlags.SAMPLED)
        state = parent.state if parent is not None else ""
        return made, TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", sampled, state)

    def fail(self, made: Span, error: str) -> None:
        """Marks a span as failed by an error of this class."""
        made.set_attribute("error.type", error)
        made.set_status(Status(StatusCode.ERROR))

    def close(self) -> None:
        """Sends what is left for at most two seconds; safe to call twice."""
        self._queue.close()


class _Queue(SpanProcessor):
    """Finished spans on their way. Its thread alone talks to the collector."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._condition = threading.Condition()
        self._waiting: deque[ReadableSpan] = deque()
        self._closed = False
        self._refused = False
        self.sent = self.dropped = 0
        self._thread = threading.Thread(target=self._send, name="traces", daemon=True)
        self._thread.start()

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Takes a span, if there is room."""
        with self._condition:
            if self._closed or len(self._waiting) >= MAX_WAITING_COUNT:
                self.dropped += 1
            else:
                self._waiting.append(span)

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(_CLOSE_S)
        self._exporter.shutdown(timeout_millis=0)

    def _send(self) -> None:
        while True:
            with self._condition:
                if not self._closed:
                    self._condition.wait(_SEND_EVERY_S)
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH_COUNT))]
                if self._closed and not batch:
                    return
            if batch:
                self._sent(len(batch), self._exporter.export(batch) is SpanExportResult.SUCCESS)

    def _sent(self, count: int, taken: bool) -> None:
        with self._condition:
            if taken:
                self.sent += count
            else:
                self.dropped += count
        if taken == self._refused:
            self._refused = not taken
            _logger.log(logging.INFO if taken else logging.WARNING, "traces_taken" if taken else "traces_dropped")


def _context(parent: TraceContext | None) -> Context:
    """OpenTelemetry's form of a parent; an empty context begins a trace."""
    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(remote), Context())
