"""The caller's OpenTelemetry span, as calls tell it, so that what the servers do becomes part of the caller's trace.

OpenTelemetry is neither needed nor loaded: a process that has begun a span has loaded it.
"""

from __future__ import annotations

import sys

_LOADED = "opentelemetry.trace"


def caller_trace() -> tuple[tuple[str, str], ...]:
    """W3C's traceparent and tracestate of the present span; nothing where there is none."""
    if _LOADED not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    told: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(told)
    return tuple(told.items())
