"""The log file of one server: rolled when it is long, and read as it grows; it knows no process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

_ROLL_BYTES = 16 * 1024 * 1024
_SHOWN_CHARACTERS = 400
# The servers' words for mistakes in what they were told; there `reason` is a sentence.
_REASON_SAYS_ALL = frozenset({"not_started", "not_listening", "model_not_loaded"})
_PLAIN_FIELDS = frozenset({"time", "level", "service", "logger", "event", "request_id", "exception"})


class ServerLog:
    """What a server writes on stdout and stderr: lines of JSON from its logger, or plain text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _ROLL_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
        self._offset_bytes = path.stat().st_size if path.exists() else 0
        self.last_text = ""

    def open_for_server(self) -> BinaryIO:
        """The file, for a new server process to append to."""
        self.last_text = ""
        return self.path.open("ab")

    def new_errors(self) -> list[str]:
        """What the server logged as an error since the last call; remembers the last line that says what went wrong."""
        errors = []
        for line in self._new_lines():
            text, is_error = _read_line(line)
            if is_error:
                errors.append(text)
            if text:
                self.last_text = text
        return errors

    def _new_lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self._offset_bytes)
            data = file.read()
        whole, newline, _rest = data.rpartition(b"\n")  # the last line may still be in the writing
        self._offset_bytes += len(whole) + len(newline)
        return whole.decode("utf-8", errors="replace").splitlines()


def _read_line(line: str) -> tuple[str, bool]:
    """What a line says, for people, and whether it tells an error; empty when it is of no interest."""
    try:
        record = json.loads(line)
    except ValueError:
        return line.strip()[:_SHOWN_CHARACTERS], False
    if not isinstance(record, dict) or record.get("level") not in ("error", "critical"):
        return "", False
    if record.get("event") in _REASON_SAYS_ALL:
        return str(record.get("reason", ""))[:_SHOWN_CHARACTERS], True
    details = ", ".join(f"{key}={value}" for key, value in record.items() if key not in _PLAIN_FIELDS)
    text = f"{record.get('event', '')} ({details})" if details else str(record.get("event", ""))
    return text[:_SHOWN_CHARACTERS], True
