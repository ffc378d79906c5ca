"""Brings the tables of an older gateway to what this one reads, step by step; refuses those of a newer one.

The version of the tables stands in a table of its own. It does not know what the tables hold. DBOS brings its own
tables forward by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from halfreel_gateway.database import metadata, schema_version

# Any number: gateways that start at once on one PostgreSQL take turns at this lock.
_LOCK_ID = 0x48414C46


def _to_2(connection: sa.Connection) -> None:
    """The version itself, and the gateways that share the database. Before that, the tables bore no version."""
    connection.exec_driver_sql("CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY)")
    time = sa.DateTime(timezone=True).compile(connection.dialect)
    connection.exec_driver_sql(
        f"CREATE TABLE gateways (executor_id VARCHAR(64) NOT NULL PRIMARY KEY, beat_time {time} NOT NULL)"
    )


# Each brings the tables from the version before to its own. Written out, not made from today's tables: those change.
STEPS: dict[int, Callable[[sa.Connection], None]] = {2: _to_2}
VERSION = max(STEPS)


class NewerStoreError(ValueError):
    """The tables are of a newer gateway."""


def migrate(connection: sa.Connection) -> None:
    """Makes the tables, or brings them to this version; all of it or nothing, in the caller's transaction.

    Raises:
        NewerStoreError: a newer gateway made them.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_ID)))
    found = _version(connection)
    if found is None:
        metadata.create_all(connection)
    elif found > VERSION:
        raise NewerStoreError(
            f"the database's tables are of version {found}, which a newer gateway made; this one knows up to"
            f" {VERSION}: start the newer one, or give this one another database"
        )
    else:
        for version in range(found + 1, VERSION + 1):
            STEPS[version](connection)
    if found != VERSION:
        connection.execute(sa.delete(schema_version))
        connection.execute(sa.insert(schema_version).values(version=VERSION))


def _version(connection: sa.Connection) -> int | None:
    """Of the tables that are there; None where there are none."""
    inspector = sa.inspect(connection)
    if inspector.has_table(schema_version.name):
        return connection.execute(sa.select(schema_version.c.version)).scalar_one()
    return 1 if inspector.has_table("films") else None
