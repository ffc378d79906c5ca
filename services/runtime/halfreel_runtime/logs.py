"""Logs as JSON lines on stderr, each with the ids of the request and of the trace it belongs to.

It does not know what is logged; servers log an event's name and put figures into `extra`.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
from datetime import UTC, datetime

from halfreel_runtime.tracing import trace_var

request_id_var: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, logger, event, request_id, trace_id, then the record's extras."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; what JSON cannot hold is shown as text."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        if request_id := request_id_var.get():
            line["request_id"] = request_id
        if (trace := trace_var.get()) is not None:
            line["trace_id"] = trace.trace_id
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(level: str, service: str) -> None:
    """Sends all logs to stderr as JSON lines: ours from `level` up, everybody else's from warnings up.

    Args:
        level: debug, info, warning or error.
        service: llm, video or gateway; named in every line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for package in ("halfreel_runtime", f"halfreel_{service}", "halfreel_pocket"):
        logging.getLogger(package).setLevel(level.upper())
    logging.captureWarnings(True)
