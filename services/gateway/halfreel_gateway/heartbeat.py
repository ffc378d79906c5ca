"""Says every few seconds that this gateway lives, and notices when another that shares the database does not any more.

Times are the database's own: the clocks of hosts differ. It does not know what is taken over of a dead gateway.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from halfreel_gateway.database import Database, gateways

BEAT_EVERY_S = 4.0
# Of three beats in a row a slow database may lose two.
DEAD_AFTER_S = 15.0

_logger = logging.getLogger(__name__)


class Heartbeat:
    """The heartbeat of one gateway, on PostgreSQL.

    Args:
        database: that the gateways share.
        executor_id: of this one.
        take_over: goes on with what a dead gateway, given by its executor_id, was at work on, and tells whether that is
            all of it; called again until it is.
    """

    def __init__(self, database: Database, executor_id: str, take_over: Callable[[str], bool]) -> None:
        self._database = database
        self._executor_id = executor_id
        self._take_over = take_over
        self._known_dead: set[str] = set()
        self._stopping = threading.Event()
        self._beating = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        # A takeover may last: this gateway must not be taken for dead over it.
        self._looking_stops = threading.Event()
        self._looking = threading.Thread(target=self._look_on, name="heartbeats-of-others", daemon=True)

    def start(self) -> None:
        """Beats once, before anything is begun, and then on. Another that takes this one over right now ends first."""
        with self._database.locked(_lock_name(self._executor_id), waits=True):
            self._beat(0.0)
        self._beating.start()
        self._looking.start()

    def stop_looking(self) -> None:
        """Takes nothing over any more."""
        self._looking_stops.set()
        self._looking.join()

    def stop(self) -> None:
        """Beats no more. Others go on at once with what is left."""
        self.stop_looking()
        self._stopping.set()
        self._beating.join()
        try:
            self._beat(DEAD_AFTER_S)
        except sa.exc.DBAPIError as error:
            _logger.warning("no_heartbeat", extra={"reason": str(error.orig)})

    def _beat_on(self) -> None:
        while not self._stopping.wait(BEAT_EVERY_S):
            try:
                self._beat(0.0)
            except Exception:  # the database is away
                _logger.exception("no_heartbeat")

    def _beat(self, age_s: float) -> None:
        beat_time = _ago(age_s)
        beat = insert(gateways).values(executor_id=self._executor_id, beat_time=beat_time)
        with self._database.writing() as connection:
            connection.execute(
                beat.on_conflict_do_update(index_elements=["executor_id"], set_={"beat_time": beat_time})
            )

    def _look_on(self) -> None:
        while not self._looking_stops.wait(BEAT_EVERY_S):
            try:
                self._look()
            except Exception:  # the database is away; while it is, nobody takes anything over
                _logger.exception("no_takeover")

    def _look(self) -> None:
        """Takes over what dead gateways left, one after the other."""
        row = gateways.c
        query = sa.select(row.executor_id).where(_is_dead(), row.executor_id != self._executor_id)
        with self._database.reading() as connection:
            dead = list(connection.execute(query).scalars())
        self._known_dead.intersection_update(dead)
        for executor_id in dead:
            if self._looking_stops.is_set():
                return
            with self._database.locked(_lock_name(executor_id), waits=False) as taken:
                if taken:
                    self._bury(executor_id)

    def _bury(self, executor_id: str) -> None:
        """Takes over what one gateway left, and forgets it when that is all done.

        Its lock is held meanwhile: two never take over the same one at once. Whoever dies at it lets go of the lock and
        leaves the row to the next; so does one that could not take over everything.
        """
        is_dead = (gateways.c.executor_id == executor_id, _is_dead())
        with self._database.reading() as connection:
            if connection.execute(sa.select(sa.literal(1)).where(*is_dead)).first() is None:
                return  # it is back, or another was quicker
        if executor_id not in self._known_dead:
            self._known_dead.add(executor_id)
            _logger.warning("gateway_dead", extra={"executor_id": executor_id})
        if self._take_over(executor_id):
            with self._database.writing() as connection:
                connection.execute(sa.delete(gateways).where(*is_dead))


def _ago(seconds: float) -> sa.ColumnElement[datetime]:
    """A time by the database's clock."""
    return sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _is_dead() -> sa.ColumnElement[bool]:
    return gateways.c.beat_time < _ago(DEAD_AFTER_S)


def _lock_name(executor_id: str) -> str:
    return f"halfreel-gateway-{executor_id}"
