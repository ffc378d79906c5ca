"""A film in the making as JSON lines: one object an event, the film last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from halfreel_client.display.as_json import Json, as_json, event_json, json_line
from halfreel_client.display.summary import summary_of
from halfreel_client.film import Film
from halfreel_client.film_events import FilmEvent
from halfreel_client.memory import ServerMemory
from halfreel_client.supervisor.supervisor import Note, ServerState, ServerStatus


class JsonView:
    """Every event as one line.

    Args:
        write: takes one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._states: dict[str, ServerState] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def servers(self, statuses: Sequence[ServerStatus]) -> None:
        """One line for every server whose state changed."""
        for status in statuses:
            if self._states.get(status.name) is not status.state:
                self._states[status.name] = status.state
                self._line({"event": "server", "server": as_json(status)})

    def note(self, note: Note) -> None:
        """One line."""
        self._line({"event": "server_note", "name": note.name, "text": note.text})

    def accepted(self, film: Film) -> None:
        """One line with the film."""
        self._line({"event": "accepted", "film": as_json(film)})

    def event(self, event: FilmEvent) -> None:
        """One line, also for live events."""
        self._line(event_json(event))

    def memory(self, servers: Sequence[ServerMemory]) -> None:
        """One line a second."""
        self._line({"event": "memory", "servers": as_json(tuple(servers))})

    def ending(self) -> None:
        """One line."""
        self._line({"event": "ending"})

    def done(self, film: Film, memory: Sequence[ServerMemory], path: Path | None) -> None:
        """The last line: the film, its summary, and where it is."""
        summary = as_json(summary_of(film, memory))
        self._line({"event": "film", "film": as_json(film), "summary": summary, "path": as_json(path)})

    def _line(self, value: Json) -> None:
        self._write(json_line(value))
