"""The gateway's database: its tables, and how SQLite and PostgreSQL are opened.

It does not know what a film is: films, scenes and events are rows with a protobuf message in each. What changes here is
a new version of the tables, and needs a step in `migrations`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

SQLITE_FILE_NAME = "gateway.sqlite"
# Long enough for any transaction of ours to end on a slow disk; DBOS waits as long on its own connections.
BUSY_TIMEOUT_MS = 30_000
# An execution option of ours: the transaction will write, so SQLite takes its write lock at once.
# A transaction that reads first and writes later would fail with "database is locked" instead of waiting.
WRITES = "halfreel_writes"

metadata = sa.MetaData()

films = sa.Table(
    "films",
    metadata,
    sa.Column("film_id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),  # the name of the token that made it; empty without tokens
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("waiting_reason", sa.Text, nullable=False),
    sa.Column("create_time_us", sa.BigInteger, nullable=False),
    sa.Column("last_sequence_number", sa.Integer, nullable=False),
    sa.Column("film", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("owner", "request_id"),
    sa.Index("films_by_create_time", "create_time_us", "film_id"),
    sa.Index("films_by_owner", "owner", "create_time_us", "film_id"),
    sa.Index("films_by_state", "state"),
)

scenes = sa.Table(
    "scenes",
    metadata,
    sa.Column("film_id", sa.String(32), primary_key=True),
    sa.Column("scene_index", sa.SmallInteger, primary_key=True),
    sa.Column("clip_sha256", sa.String(64), nullable=False, index=True),
    sa.Column("done_ratio", sa.Float, nullable=False),
    sa.Column("start_time_us", sa.BigInteger, nullable=False),
    sa.Column("end_time_us", sa.BigInteger, nullable=False),
    sa.Column("scene", sa.LargeBinary, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("film_id", sa.String(32), primary_key=True),
    sa.Column("sequence_number", sa.Integer, primary_key=True),
    sa.Column("event", sa.LargeBinary, nullable=False),
)

# One row.
schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))

# Those that share the database, where it is PostgreSQL.
gateways = sa.Table(
    "gateways",
    metadata,
    sa.Column("executor_id", sa.String(64), primary_key=True),
    sa.Column("beat_time", sa.DateTime(timezone=True), nullable=False),
)


def database_url(configured: str, data_dir: Path) -> sa.URL:
    """The database to use: the one that is set, or a SQLite file in the data folder.

    A PostgreSQL URL may begin with postgres:// or postgresql://; the driver is always psycopg.

    Raises:
        ValueError: for a URL that is neither SQLite's nor PostgreSQL's.
    """
    if not configured:
        return sa.URL.create("sqlite", database=str(data_dir / SQLITE_FILE_NAME))
    try:
        url = sa.make_url(configured)
    except sa.exc.ArgumentError:
        raise ValueError("database_url is not a URL; it must look like postgresql://user@host:5432/name") from None
    if url.get_backend_name() in {"postgres", "postgresql"}:
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite":
        return url
    raise ValueError(f"database_url begins with {url.drivername!r}; it must begin with 'postgresql' or 'sqlite'")


class Database:
    """One engine, with reading and writing transactions.

    Args:
        url: of SQLite or PostgreSQL, as `database_url` gives it.
    """

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self._engine = sa.create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite")
        if url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)

    @property
    def is_shared(self) -> bool:
        """Whether gateways on several hosts may use it."""
        return self.url.get_backend_name() == "postgresql"

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database and changes nothing."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is on disk when the block ends, or leaves nothing when the block raises."""
        with self._engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
            yield connection

    @contextmanager
    def locked(self, name: str, *, waits: bool) -> Iterator[bool]:
        """A lock of PostgreSQL's of that name: True, or False when it is another's and this one does not wait for it.

        It is held by a connection without a transaction, and let go of when that ends, however it ends.
        """
        key = sa.func.hashtextextended(name, 0)
        take = sa.func.pg_advisory_lock(key) if waits else sa.func.pg_try_advisory_lock(key)
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            taken = connection.execute(sa.select(take)).scalar() is not False
            try:
                yield taken
            finally:
                if taken:
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is sent by _begin_sqlite, not guessed by the driver
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",  # a commit is on disk before it is answered
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
