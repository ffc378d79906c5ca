"""Logs: one JSON object a line, whatever is logged."""

from __future__ import annotations

import io
import json
import logging
import warnings
from typing import Any

import pytest

from halfreel_runtime.logs import configure_logs, request_id_var


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Any:
    root = logging.getLogger()
    before = root.handlers, root.level
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logs("info", "llm")
    yield stream
    root.handlers, level = before
    root.setLevel(level)
    logging.captureWarnings(False)


def test_a_line_has_the_event_the_request_and_the_figures(stream: io.StringIO) -> None:
    token = request_id_var.set("film-1")
    logging.getLogger("halfreel_llm.model").info("loaded", extra={"seconds": 1.5, "device": object})
    request_id_var.reset(token)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["service"], line["level"]) == ("loaded", "llm", "info")
    assert (line["request_id"], line["seconds"], line["logger"]) == ("film-1", 1.5, "halfreel_llm.model")
    assert line["time"].endswith("+00:00")


def test_others_are_heard_from_warnings_up(stream: io.StringIO) -> None:
    logging.getLogger("some_library").info("chatter")
    logging.getLogger("halfreel_runtime.engine").debug("detail")
    logging.getLogger("some_library").warning("careful")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("odd\nodd", UserWarning, stacklevel=1)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["warning", "warning"]
    assert "odd\nodd" in lines[1]["event"]


def test_no_text_breaks_a_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines \udc80 \x1b[31m")
    except ValueError:
        logging.getLogger("halfreel_runtime").exception("failed\n{}")
    [line] = stream.getvalue().splitlines()
    assert "Traceback" in json.loads(line)["exception"]
