"""Where a watcher of a film stands in its events; it makes no call."""

from __future__ import annotations

from halfreel.gateway.v1 import gateway_pb2
from halfreel_client.errors import HalfreelError
from halfreel_client.film_events import FilmEvent, Rejoining, Snapshot, film_event_from
from halfreel_client.patience import Patience


class Watching:
    """One watch of one film over any number of connections: no stored event is lost, none comes twice.

    Args:
        film_id: the film.
        after: the last sequence number seen; None begins with what is new.
        preview: whether previews are wanted.
        patience_s: how long to try to join again, in seconds.
    """

    def __init__(self, film_id: str, after: int | None, preview: bool, patience_s: float) -> None:
        self._film_id = film_id
        self._last = after
        self._preview = preview
        self._patience = Patience(patience_s)

    def request(self) -> gateway_pb2.WatchFilmRequest:
        """What to ask for, now."""
        return gateway_pb2.WatchFilmRequest(
            film_id=self._film_id, after_sequence_number=self._last, preview=self._preview
        )

    def heard(self, message: gateway_pb2.WatchFilmResponse) -> FilmEvent | None:
        """The event of a message; None when it is known already, or of a kind newer than this client."""
        self._patience.renew()
        event = film_event_from(message)
        if event is None:
            return None
        if isinstance(event.what, Snapshot):
            # Stored events that came since `after` follow a snapshot, so it moves only a watcher who had none.
            self._last = event.sequence_number if self._last is None else self._last
            return event
        if event.sequence_number:
            if self._last is not None and event.sequence_number <= self._last:
                return None
            self._last = event.sequence_number
        return event

    def lost(self, error: HalfreelError) -> Rejoining:
        """What to tell of a broken connection; its delay is to be waited before the next request.

        Raises:
            HalfreelError: `error` itself, when joining again does not help or was tried for too long.
        """
        return Rejoining(error, self._patience.delay_s(error))
