"""A backup that is taken while a film is rendered, restored elsewhere; the commands are those of docs/operations.md."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from gateway_doubles import Serving
from gateway_process import Gateway

from halfreel.gateway.v1 import gateway_pb2 as pb

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
FILM = {"scene_count": 2, "seed": 41}


def run(what: str, kind: str, programs: Path | None, **variables: object) -> None:
    """Runs the commands that back up or restore a store of this kind."""
    section = OPERATIONS.read_text().split("\n## Backup and restore\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    keys = [(each, database) for each in ("back up", "restore") for database in ("sqlite", "postgresql")]
    script = dict(zip(keys, blocks, strict=True))[what, kind]
    path = [str(programs)] if programs is not None else []
    path += [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {name: str(value) for name, value in variables.items()} | {"PATH": os.pathsep.join(path)}
    done = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def test_a_store_is_restored_elsewhere(
    own_gateway: Gateway, llm: Serving, video: Serving, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    programs, urls = None, ["", ""]
    if kind == "postgresql":
        programs = request.getfixturevalue("postgresql_programs")
        cluster = request.getfixturevalue("postgresql_cluster")
        urls = [cluster.new_database(), cluster.new_database()]
    own_gateway.start(database_url=urls[0])
    finished = own_gateway.ended(own_gateway.create("finished", **FILM | {"seed": 40}).film_id)
    video.double.behaviours.script("ok", "hold")
    film_id = own_gateway.create("in flight", **FILM).film_id
    assert video.double.behaviours.held.wait(10)
    at_work = own_gateway.until(film_id, lambda film: film.scenes[1].state == pb.Scene.STATE_RENDERING)
    (own_gateway.data_dir / "clips" / ".gateway-0123456789abcdef.part").write_bytes(b"half a clip")

    backup = tmp_path / "backup"
    backup.mkdir()
    run("back up", kind, programs, DATA=own_gateway.data_dir, BACKUP=backup, URL=urls[0])
    with tarfile.open(backup / "files.tar") as files:
        assert {Path(name).suffix for name in files.getnames()} == {"", ".mp4"}
    video.double.behaviours.let_go.set()
    undisturbed = own_gateway.ended(film_id)
    assert own_gateway.stop() == 0

    (tmp_path / "elsewhere").mkdir()
    restored = Gateway(tmp_path / "elsewhere", [llm.address], [video.address], database_url=urls[1])
    run("restore", kind, programs, DATA=restored.data_dir, BACKUP=backup, URL=urls[1])
    video.double.behaviours.reset()
    restored.start()
    try:
        assert restored.get(finished.film_id) == finished
        assert sha256(restored.read(finished.film_id)) == finished.video.sha256
        clip = at_work.scenes[0].clip.sha256
        assert sha256((restored.data_dir / "clips" / f"{clip}.mp4").read_bytes()) == clip
        ended = restored.ended(film_id)
        assert [scene.attempt_count for scene in ended.scenes] == [1, 2]
        assert len(video.double.behaviours.requests) == 1, "the clip that was there is not made again"
        assert ended.scenes[0].clip.sha256 == clip
        assert ended.video.sha256 == undisturbed.video.sha256 == sha256(restored.read(film_id))
        restored.ended(restored.create("a new film", **FILM).film_id)
    finally:
        assert restored.stop() == 0


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
