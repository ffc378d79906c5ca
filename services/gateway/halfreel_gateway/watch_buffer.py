"""The events that one watcher has not read yet: bounded, and never short of a stored one.

It does not know films or who publishes; it lives on the event loop alone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_runtime.errors import SlowReader

# Up to here every event is kept as it is; beyond, live events that say the same thing anew replace each other.
MERGE_BEYOND_COUNT = 64
# A film has some tens of stored events: a watcher with so many unread is not reading.
MAX_COUNT = 1024
# Of the script's text that waits as one event: a script is a few thousand characters.
MAX_DELTA_CHARACTERS = 100_000


class WatchBuffer:
    """A queue of events with one reader."""

    def __init__(self) -> None:
        self._events: OrderedDict[Hashable, pb.WatchFilmResponse] = OrderedDict()
        self._count = 0
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, event: pb.WatchFilmResponse) -> None:
        """Adds an event; too many unread ones end the watch."""
        self._count += 1
        key: Hashable = self._count
        same = _topic(event)
        if same is not None and (len(self._events) >= MERGE_BEYOND_COUNT or event.HasField("script_delta")):
            key, earlier = same, self._events.pop(same, None)
            if earlier is not None and event.HasField("script_delta"):
                event = _joined(earlier, event)
        if len(self._events) >= MAX_COUNT or len(event.script_delta.text) > MAX_DELTA_CHARACTERS:
            self.close(SlowReader("The film's events were not read fast enough; watch again from the last number."))
            return
        self._events[key] = event
        self._changed.set()

    def close(self, error: Exception) -> None:
        """Ends the watch with an error, at once."""
        self._error = self._error or error
        self._changed.set()

    async def get(self) -> pb.WatchFilmResponse:
        """The next event; waits for one.

        Raises:
            Exception: what `close` was given.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._events:
                return self._events.popitem(last=False)[1]
            self._changed.clear()
            await self._changed.wait()


def _topic(event: pb.WatchFilmResponse) -> Hashable | None:
    """What a live event tells the newest of; None for one that must not be left out."""
    kind = event.WhichOneof("event")
    if kind == "script_delta":
        return kind, event.script_delta.attempt
    if kind in {"scene_step", "scene_stage", "scene_preview"}:
        return kind, getattr(event, kind).scene_index
    return kind if kind == "waiting" else None


def _joined(earlier: pb.WatchFilmResponse, later: pb.WatchFilmResponse) -> pb.WatchFilmResponse:
    joined = pb.WatchFilmResponse()
    joined.CopyFrom(later)
    joined.script_delta.text = earlier.script_delta.text + later.script_delta.text
    return joined
