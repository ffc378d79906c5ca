"""What every way of showing a film in the making can be told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from halfreel_client.film import Film
from halfreel_client.film_events import FilmEvent
from halfreel_client.memory import ServerMemory
from halfreel_client.supervisor.supervisor import Note, ServerStatus


class View(Protocol):
    """Shows what it is told; a context, out of which a terminal is as it was."""

    def __enter__(self) -> Self:
        """Begins to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends, and leaves the terminal as it was."""

    def servers(self, statuses: Sequence[ServerStatus]) -> None:
        """The local servers as they are now."""

    def note(self, note: Note) -> None:
        """Something that happened to a local server."""

    def accepted(self, film: Film) -> None:
        """The film was accepted."""

    def event(self, event: FilmEvent) -> None:
        """Something happened to the film."""

    def memory(self, servers: Sequence[ServerMemory]) -> None:
        """The model servers' memory as it is now."""

    def ending(self) -> None:
        """The work was interrupted; what follows may take some seconds."""

    def done(self, film: Film, memory: Sequence[ServerMemory], path: Path | None) -> None:
        """The film has ended; it is at `path` when it was saved. The last call."""
