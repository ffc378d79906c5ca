"""The tables of an older gateway are brought forward; those of a newer one are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from halfreel_gateway import database as db
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.migrations import STEPS, VERSION, NewerStoreError, migrate

# The tables as they were when they bore no version.
FIRST = (db.films, db.scenes, db.events)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(database_url("", tmp_path))
    yield database
    database.close()


def tables(database: Database) -> dict[str, object]:
    with database.reading() as connection:
        inspector = sa.inspect(connection)
        return {
            name: (
                [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)],
                inspector.get_pk_constraint(name)["constrained_columns"],
                sorted(str(index["column_names"]) for index in inspector.get_indexes(name)),
            )
            for name in inspector.get_table_names()
        }


def brought_forward(database: Database) -> int:
    with database.writing() as connection:
        migrate(connection)
        return connection.execute(sa.select(db.schema_version.c.version)).scalar_one()


def test_old_tables_become_what_new_ones_are(database: Database, tmp_path: Path) -> None:
    with database.writing() as connection:
        db.metadata.create_all(connection, tables=FIRST)
    assert brought_forward(database) == VERSION
    (tmp_path / "new").mkdir()
    new = Database(database_url("", tmp_path / "new"))
    assert brought_forward(new) == VERSION
    old_tables, new_tables = tables(database), tables(new)
    new.close()
    assert old_tables == new_tables
    assert brought_forward(database) == VERSION


def test_a_step_that_fails_leaves_the_old_tables(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.writing() as connection:
        db.metadata.create_all(connection, tables=FIRST)
    before = tables(database)

    def half_done(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (x INTEGER)")
        raise OSError("the disk is full")

    monkeypatch.setitem(STEPS, 2, half_done)
    with pytest.raises(OSError, match="full"):
        brought_forward(database)
    assert tables(database) == before


def test_the_tables_of_a_newer_gateway_are_refused(database: Database) -> None:
    brought_forward(database)
    with database.writing() as connection:
        connection.execute(sa.update(db.schema_version).values(version=VERSION + 3))
    with pytest.raises(
        NewerStoreError, match=f"of version {VERSION + 3}, .* knows up to {VERSION}: start the newer one"
    ):
        brought_forward(database)
