"""Asks the store from the event loop, and tells a client whose question finds the database away to come back.

It does not know what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import sqlalchemy as sa

from halfreel_gateway.failures import is_database_away
from halfreel_runtime.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

RETRY_AFTER_S = 2.0


async def in_database(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result, from a thread.

    Raises:
        Unavailable: DATABASE_UNAVAILABLE; nothing was stored that the client could not ask for again.
    """
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except sa.exc.SQLAlchemyError as error:
        if not is_database_away(error):
            raise
        raise Unavailable(
            "The gateway's database does not answer; films in the making wait for it. Ask again.",
            reason="DATABASE_UNAVAILABLE",
            retry_after_s=RETRY_AFTER_S,
        ) from error
