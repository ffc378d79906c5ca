"""A client in another language, made from the committed .proto files alone, makes a film."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.node
def test_a_node_client_makes_a_film(stack, tmp_path: Path) -> None:
    address = f"127.0.0.1:{stack.ports['gateway']}"
    file = tmp_path / "film.mp4"
    command = ["node", "make_film.js", address, ROOT / "protos", "a blue star over the sea", "2", file]
    done = subprocess.run(command, cwd=Path(__file__).parent / "node", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["refusalCode"] == 3  # INVALID_ARGUMENT: the empty idea
    assert (told["state"], told["scenes"]) == ("STATE_SUCCEEDED", 2)
    assert told["told"] == told["read"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert told["kinds"][0] == "film"
    assert {"stateChanged", "sceneChanged", "videoReady"} <= set(told["kinds"])
