"""The supervisor over small real processes: restarts, wrong settings, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from halfreel_client.supervisor.child import ServerSpec
from halfreel_client.supervisor.supervisor import ServerState, Supervisor

Spec = Callable[..., ServerSpec]
Until = Callable[..., None]
Alive = Callable[[int], bool]


def supervisor_of(folder: Path, *specs: ServerSpec, grace_s: float = 10.0) -> Supervisor:
    return Supervisor(specs, run_folder=folder / "run", log_folder=folder / "logs", grace_s=grace_s)


def pids(supervisor: Supervisor) -> list[int]:
    return [status.pid for status in supervisor.statuses if status.pid is not None]


def test_starts_in_order_and_stops_all(tmp_path: Path, spec: Spec, until: Until, alive: Alive) -> None:
    seen: list[dict[str, str]] = []

    def arguments(addresses: dict[str, str]) -> list[str]:
        seen.append(dict(addresses))
        return ["--model", addresses["model"]]

    with supervisor_of(tmp_path, spec("model"), spec("front", needs=("model",), arguments=arguments)) as supervisor:
        until(lambda: supervisor.serving)
        running = pids(supervisor)
        addresses = {status.name: status.address for status in supervisor.statuses}
    assert seen == [{"model": addresses["model"]}]
    assert len(running) == 2
    assert not [pid for pid in running if alive(pid)]
    assert [status.state for status in supervisor.statuses] == [ServerState.STOPPED, ServerState.STOPPED]
    assert f'"--model", "{addresses["model"]}"' in (tmp_path / "logs" / "front.log").read_text()


def test_what_dies_is_started_again_on_its_port(tmp_path: Path, spec: Spec, until: Until) -> None:
    with supervisor_of(tmp_path, spec("model")) as supervisor:
        until(lambda: supervisor.serving)
        (before,) = supervisor.statuses
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: not supervisor.serving)
        until(lambda: supervisor.serving)
        (after,) = supervisor.statuses
        assert after.pid != before.pid
        assert (after.address, after.failure_count) == (before.address, 1)
        notes = [supervisor.notes.get_nowait().text for _ in range(supervisor.notes.qsize())]
    assert [note for note in notes if note.startswith("low_memory (free_bytes=5")]
    assert "was ended by SIGKILL" in " ".join(notes)
    assert "starts again in 0.5 s" in " ".join(notes)


def test_delays_double(tmp_path: Path, spec: Spec, until: Until) -> None:
    with supervisor_of(tmp_path, spec("model", TEST_DIE_FIRST=1)) as supervisor:
        until(lambda: supervisor.statuses[0].failure_count >= 3)
        assert supervisor.statuses[0].problem == "ended with code 1: no model there"
        notes = [supervisor.notes.get_nowait().text for _ in range(supervisor.notes.qsize())]
    assert notes[:6] == [
        text
        for delay in ("0.5 s", "1 s", "2 s")
        for text in ("no model there", f"ended with code 1; starts again in {delay}")
    ]


def test_wrong_settings_stop_everything(tmp_path: Path, spec: Spec, until: Until, alive: Alive) -> None:
    text = "model 'nowhere' is neither a folder nor in the cache"
    with supervisor_of(tmp_path, spec("good"), spec("bad", TEST_REFUSE=text)) as supervisor:
        until(lambda: supervisor.ended)
        refused = supervisor.refused
    assert refused is not None
    assert (refused.name, refused.problem, refused.failure_count) == ("bad", text, 0)
    assert not [status for status in supervisor.statuses if status.pid is not None]


def test_a_server_that_does_not_drain_is_killed(tmp_path: Path, spec: Spec, until: Until, alive: Alive) -> None:
    with supervisor_of(tmp_path, spec("model", TEST_STUBBORN=1), grace_s=0.5) as supervisor:
        until(lambda: supervisor.serving)
        (pid,) = pids(supervisor)
        began = time.monotonic()
    assert 0.4 < time.monotonic() - began < 20
    assert not alive(pid)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_processes_of_a_server_end_with_it(tmp_path: Path, spec: Spec, until: Until, alive: Alive, end: str) -> None:
    with supervisor_of(tmp_path, spec("model", TEST_GRANDCHILD=1)) as supervisor:
        until(lambda: supervisor.serving)
        (pid,) = pids(supervisor)
        (grandchild,) = psutil.Process(pid).children()
        if end == "kill":
            os.kill(pid, signal.SIGKILL)
            until(lambda: not alive(grandchild.pid))
    until(lambda: not alive(grandchild.pid), within_s=5)


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path, spec: Spec, until: Until, alive: Alive) -> None:
    made = spec("model")
    script = f"""
        import json, time
        from pathlib import Path
        from halfreel_client.supervisor.child import ServerSpec
        from halfreel_client.supervisor.supervisor import Supervisor

        specs = [ServerSpec(name, "halfreel_test_server", "test.Service", environment={dict(made.environment)!r})
                 for name in ("one", "two")]
        with Supervisor(specs, run_folder=Path("run"), log_folder=Path("logs")) as supervisor:
            while not supervisor.serving:
                time.sleep(0.05)
            print(json.dumps([status.pid for status in supervisor.statuses]), flush=True)
            time.sleep(600)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    running = json.loads(process.stdout.readline())
    assert all(alive(pid) for pid in running)
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not [pid for pid in running if alive(pid)], within_s=5)
