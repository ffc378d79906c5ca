"""Any value of this client as JSON: for machines that read the command's output."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path

from halfreel_client.errors import HalfreelError
from halfreel_client.film_events import FilmEvent

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def as_json(value: object) -> Json:
    """The value with its own field names: units stay in them, times are ISO 8601, bytes are base64."""
    match value:
        case str() | int() | float() | None:
            return value
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case datetime():
            return value.isoformat()
        case Path():
            return str(value)
        case dict():
            return {str(key): as_json(item) for key, item in value.items()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case HalfreelError():
            return {
                "code": value.code.name,
                "reason": value.reason,
                "message": value.message,
                "violations": as_json(value.violations),
                "retry_after_s": value.retry_after_s,
                "metadata": as_json(value.metadata),
            }
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def event_json(event: FilmEvent) -> Json:
    """A film's event as one object: its kind in snake case, number and time, then its own fields."""
    kind = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(event.what).__name__)
    own = as_json(event.what)
    assert isinstance(own, dict)
    return {
        "event": kind.lstrip("_"),
        "sequence_number": event.sequence_number,
        "time": event.time.isoformat(),
        **own,
    }


def json_line(value: Json) -> str:
    """One line, safe for any terminal and any reader."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)
