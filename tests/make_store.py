"""Keeps a store as this version of the gateway leaves it when it is killed, for the tests of upgrades.

    python tests/make_store.py tests/stores/NAME

Run it before the workflow or the tables change; NAME is the workflow's version. The store holds a film that is done,
one whose first clip is rendered, and one whose script is being written, in SQLite and in PostgreSQL, as SQL text.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

from conftest import postgresql_binaries
from gateway_doubles import LLM, VIDEO, LlmDouble, Serving, VideoDouble
from gateway_process import Gateway
from postgresql_cluster import Cluster

from halfreel.gateway.v1 import gateway_pb2 as pb

FILM = {"scene_count": 2, "scene_seconds": 1, "width_px": 64, "height_px": 64, "fps": 7, "seed": 3}


def leave_films(folder: Path, database_url: str) -> Gateway:
    """A gateway that was killed with films in flight."""
    (folder / "made").mkdir()
    llm, video = Serving(LLM, LlmDouble()), Serving(VIDEO, VideoDouble(folder / "made"))
    video.double.crf = "40"
    gateway = Gateway(folder, [llm.address], [video.address], database_url=database_url)
    gateway.start()
    gateway.ended(gateway.create("finished", request_id="finished", **FILM).film_id)
    video.double.behaviours.script("ok", "hold")
    rendering = gateway.create("half rendered", request_id="rendering", **FILM)
    assert video.double.behaviours.held.wait(30)
    gateway.until(rendering.film_id, lambda film: film.scenes[1].state == pb.Scene.STATE_RENDERING)
    llm.double.behaviours.script("hold")
    gateway.create("half written", request_id="writing", **FILM)
    assert llm.double.behaviours.held.wait(30)
    gateway.kill()
    for double in (llm, video):
        double.double.behaviours.let_go.set()
        double.down()
    return gateway


def main() -> None:
    """Writes the store."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    programs = postgresql_binaries()
    assert programs is not None, "PostgreSQL's server programs are not installed"
    for name in ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory() as scratch:
            if name == "sqlite":
                gateway = leave_films(Path(scratch), "")
                with contextlib.closing(sqlite3.connect(gateway.data_dir / "gateway.sqlite")) as database:
                    text = "\n".join(database.iterdump()) + "\n"
            else:
                cluster = Cluster(programs)
                gateway = leave_films(Path(scratch), cluster.url())
                text = cluster.run("pg_dump", "--no-owner", "--inserts", cluster.url())
                cluster.remove()
            (target / f"{name}.sql").write_text(text, encoding="utf-8")
            for folder in ("clips", "films"):
                files = [path for path in (gateway.data_dir / folder).iterdir() if path.suffix == ".mp4"]
                (target / name / folder).mkdir(parents=True)
                for path in files:
                    shutil.copy(path, target / name / folder)


if __name__ == "__main__":
    main()
