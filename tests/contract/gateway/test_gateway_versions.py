"""A gateway takes over the store of the version before, with a film in the making; it refuses that of a newer one.

The store is what a gateway of workflow version films-1 left when it was killed (tests/make_store.py). The tests of
deployments take it over on PostgreSQL, too.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa
from gateway_doubles import Serving
from gateway_process import Gateway

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway.database import Database, database_url, schema_version
from halfreel_gateway.migrations import migrate

STORE = Path(__file__).parents[2] / "stores" / "films-1"


def test_a_film_in_the_making_is_taken_over(own_gateway: Gateway, video: Serving) -> None:
    video.double.crf = "40"
    shutil.copytree(STORE / "sqlite", own_gateway.data_dir)
    left = own_gateway.data_dir / "clips" / ".gateway-0123456789abcdef.part"
    left.write_bytes(b"half a clip")
    database = sqlite3.connect(own_gateway.data_dir / "gateway.sqlite")
    database.executescript((STORE / "sqlite.sql").read_text())
    database.close()
    own_gateway.start()
    films = {film.request_id: film for film in own_gateway.stub.ListFilms(pb.ListFilmsRequest(), timeout=10).films}
    assert films["finished"].state == pb.Film.STATE_SUCCEEDED
    ended = own_gateway.ended(films["rendering"].film_id)
    own_gateway.ended(films["writing"].film_id)
    assert [scene.attempt_count for scene in ended.scenes] == [1, 2]
    assert len(video.double.behaviours.requests) == 3, "the second scene of the one, and both of the other"
    assert not left.exists()
    numbers = [event.sequence_number for event in own_gateway.watch(ended.film_id, 0)][1:]
    assert numbers == list(range(1, len(numbers) + 1))
    assert ended.video.sha256 == films["finished"].video.sha256, "the same seed, before and after"


def test_the_store_of_a_newer_gateway_is_refused(tmp_path: Path) -> None:
    database = Database(database_url("", tmp_path))
    with database.writing() as connection:
        migrate(connection)
        connection.execute(sa.update(schema_version).values(version=99))
    database.close()
    command = [sys.executable, "-m", "halfreel_gateway", "--data-dir", str(tmp_path), "--port", "0"]
    done = subprocess.run([*command, "--metrics-port", "0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "the database's tables are of version 99, which a newer gateway made" in done.stderr
    assert "Traceback" not in done.stderr
