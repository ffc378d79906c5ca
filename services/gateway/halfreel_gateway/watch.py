"""Follows one film for one client: the film as it is, what was stored since, then what happens.

It does not know who makes the film.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import films
from halfreel_gateway.database_call import in_database
from halfreel_gateway.hub import Hub
from halfreel_gateway.store import FilmStore
from halfreel_runtime.checks import Checks


async def watch(
    hub: Hub, store: FilmStore, film_id: str, after: int | None, *, preview: bool
) -> AsyncIterator[pb.WatchFilmResponse]:
    """The film, its stored events after a number, and then its events until it ends.

    Args:
        hub: tells what happens.
        store: has what happened.
        film_id: the film.
        after: the last number that the client has seen; None leaves out all that happened before.
        preview: whether to send previews.

    Raises:
        NotFound: FILM_NOT_FOUND.
        InvalidArgument: `after` is larger than any number so far.
        SlowReader: the client does not read.
    """
    with hub.watching(film_id, preview=preview) as buffer:
        stored = await in_database(store.film, film_id)
        last = stored.last_sequence_number
        if after is not None:
            checks = Checks()
            checks.between("after_sequence_number", after, 0, last)
            checks.done()
        yield pb.WatchFilmResponse(sequence_number=last, event_time=stored.film.update_time, film=stored.film)
        if after is not None and after < last:
            for event in await in_database(store.events, film_id, after):
                yield event
                last = event.sequence_number
                if films.ends_film(event):
                    return
        hub.seen(film_id, last)
        if films.has_ended(stored.film.state):
            return
        while True:
            event = await buffer.get()
            if event.HasField("scene_preview") and not preview:
                continue
            if event.sequence_number == 0:
                yield event
                continue
            missing = [event]
            if event.sequence_number > last + 1:
                missing = await in_database(store.events, film_id, last)
            for each in missing:
                if each.sequence_number > last:
                    yield each
                    last = each.sequence_number
                    if films.ends_film(each):
                        return
