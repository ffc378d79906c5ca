"""Carries events from the threads that make films to the watchers on the event loop.

Stored events made by another gateway are found by looking into the database twice a second, once for all watched films
together, however many watch them. It does not know what the events say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway.failures import film_not_found
from halfreel_gateway.store import FilmPosition, FilmStore
from halfreel_gateway.watch_buffer import WatchBuffer

POLL_S = 0.5

_logger = logging.getLogger(__name__)


@dataclass
class _Feed:
    """What is told of one film: to whom, and up to which stored event."""

    known: int = 0
    preview_count: int = 0
    buffers: set[WatchBuffer] = field(default_factory=set)


class Hub:
    """The watchers of all films. `publish` and `wants_previews` are for any thread, the rest for the event loop."""

    def __init__(self) -> None:
        self._feeds: dict[str, _Feed] = {}
        self._watched: frozenset[str] = frozenset()
        self._previewed: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._poller: asyncio.Task[None] | None = None
        self._behind = asyncio.Event()

    def start(self, store: FilmStore) -> None:
        """Begins to look for the events of other gateways."""
        self._loop = asyncio.get_running_loop()
        self._poller = self._loop.create_task(self._poll(store))

    async def stop(self) -> None:
        """Looks no more."""
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller

    def publish(self, film_id: str, events: Sequence[pb.WatchFilmResponse]) -> None:
        """Tells the film's watchers."""
        with self._lock:
            if film_id not in self._watched or self._loop is None:
                return
            loop = self._loop
        with contextlib.suppress(RuntimeError):  # the loop is closed: the gateway has stopped, and nobody watches
            loop.call_soon_threadsafe(self._deliver, film_id, list(events))

    def wants_previews(self, film_id: str) -> bool:
        """Whether somebody watches the film with previews; asked by any thread."""
        with self._lock:
            return film_id in self._previewed

    @contextlib.contextmanager
    def watching(self, film_id: str, *, preview: bool) -> Iterator[WatchBuffer]:
        """A buffer that is told all that happens to the film from now on."""
        buffer = WatchBuffer()
        feed = self._feeds.setdefault(film_id, _Feed())
        feed.buffers.add(buffer)
        feed.preview_count += preview
        self._note_watched()
        try:
            yield buffer
        finally:
            feed.buffers.discard(buffer)
            feed.preview_count -= preview
            if not feed.buffers:
                self._feeds.pop(film_id, None)
            self._note_watched()

    def seen(self, film_id: str, sequence_number: int) -> None:
        """A watcher has all stored events up to this one from elsewhere."""
        if (feed := self._feeds.get(film_id)) is not None:
            feed.known = max(feed.known, sequence_number)

    def _note_watched(self) -> None:
        with self._lock:
            self._watched = frozenset(self._feeds)
            self._previewed = frozenset(film_id for film_id, feed in self._feeds.items() if feed.preview_count)

    def _deliver(self, film_id: str, events: Sequence[pb.WatchFilmResponse]) -> None:
        feed = self._feeds.get(film_id)
        if feed is None:
            return
        for event in events:
            if (number := event.sequence_number) > 0:
                if number <= feed.known:
                    continue
                if feed.known and number > feed.known + 1:
                    # Two threads stored events, and the later was told first: get both in order from the database.
                    self._behind.set()
                    return
                feed.known = number
            for buffer in feed.buffers:
                buffer.put(event)

    async def _catch_up(self, store: FilmStore, film_id: str, position: FilmPosition | None) -> None:
        feed = self._feeds.get(film_id)
        if feed is None or not feed.known:
            return
        if position is None:
            for buffer in feed.buffers:
                buffer.close(film_not_found())  # it ended and was deleted between two looks
        elif position.last_sequence_number > feed.known:
            self._deliver(film_id, await asyncio.to_thread(store.events, film_id, feed.known))

    async def _poll(self, store: FilmStore) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._behind.wait(), POLL_S)
            self._behind.clear()
            if not self._feeds:
                continue
            try:
                film_ids = list(self._feeds)
                positions = await asyncio.to_thread(store.positions, film_ids)
                for film_id in film_ids:
                    await self._catch_up(store, film_id, positions.get(film_id))
            except Exception:
                _logger.exception("watched_films_not_found_out")
