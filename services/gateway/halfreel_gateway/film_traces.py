"""Which trace and which request each film in the making belongs to, so that all work on it is told as one.

Kept in memory alone: a film that a restart interrupts goes on in a trace that bears its own id. It does not know how
films are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import films
from halfreel_runtime.logs import request_id_var
from halfreel_runtime.tracing import Attribute, TraceContext, note, span, trace_var

_SPAN_ID_DIGITS = 16
# More than may be in the making; a film that another gateway has ended is never told to have.
MAX_KEPT_COUNT = 4096


class FilmTraces:
    """The traces of films. May be used from any thread."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[TraceContext | None, str]] = {}

    def take(self, film_id: str, events: Sequence[pb.WatchFilmResponse]) -> None:
        """Hears of a film's events, in the context of whatever changed it: a film is begun by its client's call."""
        for event in events:
            if not event.HasField("state_changed"):
                continue
            if event.state_changed.state == pb.Film.STATE_QUEUED:
                self._begun[film_id] = (trace_var.get(), request_id_var.get())
                if len(self._begun) > MAX_KEPT_COUNT:
                    self._begun.pop(next(iter(self._begun)), None)
                note("halfreel.film_id", film_id)
            elif films.has_ended(event.state_changed.state):
                self._begun.pop(film_id, None)

    @contextmanager
    def step(self, film_id: str, name: str | None, scene: int | None = None) -> Iterator[None]:
        """A step of a film's production: in its film's trace, its logs under its film's request.

        Args:
            film_id: the film.
            name: of a span for the step; None for no span, as for one that only waits.
            scene: the scene's index, where the step is of one.
        """
        context, request_id = self._begun.get(film_id, (None, ""))
        before = trace_var.get(), request_id_var.get()
        trace_var.set(context or TraceContext(film_id, film_id[:_SPAN_ID_DIGITS]))
        request_id_var.set(request_id or film_id)
        attributes: dict[str, Attribute] = {"halfreel.film_id": film_id}
        if scene is not None:
            attributes["halfreel.scene_index"] = scene
        try:
            with span(name, attributes) if name is not None else nullcontext():
                yield
        finally:
            trace_var.set(before[0])
            request_id_var.set(before[1])
