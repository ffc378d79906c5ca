"""What happens to a film and is not stored as an event: text, steps, stages, previews, and why it waits.

It does not know who listens. Any thread may tell it something.
"""

from __future__ import annotations

import threading

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import films
from halfreel_gateway.hub import Hub
from halfreel_gateway.running import RunningSteps, StepRun
from halfreel_gateway.store import FilmStore


class Announcer:
    """Tells watchers live events, and keeps a film's waiting_reason true.

    Args:
        hub: has the watchers.
        store: keeps the waiting_reason.
        running: knows which steps of a film wait.
    """

    def __init__(self, hub: Hub, store: FilmStore, running: RunningSteps) -> None:
        self._hub = hub
        self._store = store
        self._running = running
        self._lock = threading.Lock()
        self._told: dict[str, str] = {}

    def live(self, film_id: str, event: pb.WatchFilmResponse) -> None:
        """Tells the film's watchers something that is not stored."""
        event.event_time.CopyFrom(films.timestamp(films.now_us()))
        self._hub.publish(film_id, [event])

    def wants_previews(self, film_id: str) -> bool:
        """Whether somebody watches the film with previews."""
        return self._hub.wants_previews(film_id)

    def waits(self, run: StepRun, reason: str) -> None:
        """A step waits for a model server, or, with an empty reason, goes on.

        The film as a whole waits when all its steps that call a server do.
        """
        run.waiting_reason = reason
        with self._lock:
            told = self._running.waiting_reason(run.film_id)
            if told == self._told.get(run.film_id, ""):
                return
            if told:
                self._told[run.film_id] = told
            else:
                self._told.pop(run.film_id, None)
            # Stored under the lock: two steps at once must not store their reasons in the other order.
            self._store.set_waiting(run.film_id, told)
        self.live(run.film_id, pb.WatchFilmResponse(waiting=pb.WatchFilmResponse.Waiting(reason=told)))
