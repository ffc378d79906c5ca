"""Says every few seconds that this gateway lives, and notices when another that shares the database does not any more.

Times are the database's own: the clocks of hosts differ. It does not know what is taken over of a dead gateway.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

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
        take_over: goes on with what a dead gateway, given by its executor_id, was at work on; may be called again.
    """

    def __init__(self, database: Database, executor_id: str, take_over: Callable[[str], None]) -> None:
        self._database = database
        self._executor_id = executor_id
        self._take_over = take_over
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beats once, before anything is begun, and then on. Another that takes this one over right now ends first."""
        self._beat(0.0)
        self._thread.start()

    def stop(self) -> None:
        """Beats no more. Others go on at once with what is left."""
        self._stopping.set()
        self._thread.join()
        try:
            self._beat(DEAD_AFTER_S)
        except sa.exc.DBAPIError as error:
            _logger.warning("no_heartbeat", extra={"reason": str(error.orig)})

    def _beat_on(self) -> None:
        while not self._stopping.wait(BEAT_EVERY_S):
            try:
                self._beat(0.0)
                self._look()
            except Exception:  # the database is away; while it is, nobody takes anything over
                _logger.exception("no_heartbeat")

    def _beat(self, age_s: float) -> None:
        beat_time = sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, age_s)
        beat = insert(gateways).values(executor_id=self._executor_id, beat_time=beat_time)
        with self._database.writing() as connection:
            connection.execute(
                beat.on_conflict_do_update(index_elements=["executor_id"], set_={"beat_time": beat_time})
            )

    def _look(self) -> None:
        """Takes over what dead gateways left, one after the other.

        The dead gateway's row is locked until all is taken over and forgotten only then: two never take over the same
        one at once, and one that dies at it leaves the row to the next.
        """
        oldest = sa.func.clock_timestamp() - sa.func.make_interval(0, 0, 0, 0, 0, 0, DEAD_AFTER_S)
        row = gateways.c
        dead = sa.select(row.executor_id).where(row.beat_time < oldest, row.executor_id != self._executor_id)
        while not self._stopping.is_set():
            with self._database.writing() as connection:
                executor_id = connection.execute(dead.limit(1).with_for_update(skip_locked=True)).scalar()
                if executor_id is None:
                    return
                _logger.warning("gateway_dead", extra={"executor_id": executor_id})
                self._take_over(executor_id)
                connection.execute(sa.delete(gateways).where(row.executor_id == executor_id))
