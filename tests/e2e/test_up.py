"""`halfreel up` with the three real servers: found by other commands, mended, stopped; mistakes of its user."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

COMMAND = [sys.executable, "-m", "halfreel_client"]
ANY_PORTS = ("--port", "0", "--llm-port", "0", "--video-port", "0")


def environment(folder: Path, **extra: str) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    return (
        own | {"HALFREEL_DATA_DIR": str(folder), "HALFREEL_LLM_DEVICE": "cpu", "HALFREEL_VIDEO_DEVICE": "cpu"} | extra
    )


def halfreel(folder: Path, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=environment(folder, **extra), capture_output=True, text=True, timeout=120
    )


def until(true: Callable[[], Any], within_s: float = 100.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)
    return found


def state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "up.json").read_text())
    except FileNotFoundError:
        return {"pids": {}, "addresses": {}}


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with (tmp_path / "out.txt").open("w") as output:
        process = subprocess.Popen([*COMMAND, "up", *ANY_PORTS], env=environment(tmp_path), stdout=output, text=True)
    yield process
    process.kill()
    process.wait()


def test_up_is_found_mended_and_stopped(up: subprocess.Popen[str], tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    until(lambda: "Ctrl-C stops" in output.read_text())
    first = state(tmp_path)
    status = halfreel(tmp_path, "status", "--once", "--json")
    assert status.returncode == 0, status.stderr
    servers = json.loads(status.stdout)["servers"]
    assert {server["kind"]: server["address"] for server in servers} == {
        "llm": first["addresses"]["llm"],
        "video": first["addresses"]["video"],
    }
    again = halfreel(tmp_path, "up", *ANY_PORTS)
    assert again.returncode == 2
    assert "`halfreel down` stops it" in again.stderr

    os.kill(first["pids"]["llm"], signal.SIGKILL)
    until(lambda: state(tmp_path)["pids"].get("llm") not in (None, first["pids"]["llm"]))
    until(lambda: output.read_text().count(f"llm: serving ({first['addresses']['llm']})") == 2)
    assert "llm: was ended by SIGKILL; starts again in 0.5 s" in output.read_text()

    running = list(state(tmp_path)["pids"].values())
    assert halfreel(tmp_path, "down").stdout == "down\n"
    assert up.wait(30) == 0
    assert not [pid for pid in running if alive(pid)]
    assert not (tmp_path / "up.json").exists()
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"llm.log", "video.log", "gateway.log"}


def test_nothing_outlives_a_killed_up(up: subprocess.Popen[str], tmp_path: Path) -> None:
    running = until(lambda: len(state(tmp_path)["pids"]) >= 2 and list(state(tmp_path)["pids"].values()))
    up.kill()
    up.wait()
    until(lambda: not [pid for pid in running if alive(pid)], within_s=5)
    assert halfreel(tmp_path, "down").stdout == "nothing is up\n"


def test_wrong_settings_are_told_and_stop_everything(tmp_path: Path) -> None:
    done = halfreel(tmp_path, "up", *ANY_PORTS, HALFREEL_VIDEO_PROT="7602")
    assert done.returncode == 2
    assert "HALFREEL_VIDEO_PORT" in done.stderr  # the nearest right name
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "up.json").exists()


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = halfreel(tmp_path, "make", "a red circle", "--local", HALFREEL_LLM_MODEL=str(tmp_path / "nowhere"))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("halfreel: llm: model ")
    assert "nowhere" in line
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = halfreel(tmp_path, "up", "--port", "0", "--llm-port", str(port), "--video-port", "0")
    assert done.returncode == 2
    assert f"llm: 127.0.0.1:{port}" in done.stderr
