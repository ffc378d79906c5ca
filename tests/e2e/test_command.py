"""The README's first command, stopped by Ctrl-C: nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from demo import demo_command, environment

ROOT = Path(__file__).resolve().parents[2]


def servers_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "halfreel_" in " ".join(child.cmdline())]


def test_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.parametrize("line", ["llm: loading", "film: writing script", "scene 1: denoise"])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, line: str) -> None:
    with subprocess.Popen(
        demo_command(tmp_path), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path
    ) as process:
        said = []
        for each in process.stdout:
            said.append(each.decode())
            if said[-1].startswith(line):
                break
        else:
            pytest.fail(f"never said {line!r}: {''.join(said)}")
        servers = servers_of(process.pid)
        assert servers
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().decode()
        assert process.wait(30) == 130, rest
    assert "Traceback" not in rest
    assert not [server for server in servers if server.is_running() and server.status() != psutil.STATUS_ZOMBIE]
    assert list(tmp_path.glob("*.mp4*")) == []
