"""The three servers of a film as processes of their own, and the models that they are tried with.

Benchmarks have films made by them; what is asked of them and what is measured meanwhile, this module does not know.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STARTED_WITHIN_S = 300.0
ENDED_WITHIN_S = 90.0
_LOOK_S = 0.1


class ServerEndedError(RuntimeError):
    """A server ended or did not start in time; the text says which, and where its log is."""


@dataclass
class Server:
    """One server process.

    Attributes:
        name: llm, video or gateway.
        process: its process.
        port_file: where it writes its ports, once it listens.
        log: what it wrote to its standard error; None where that is ours.
    """

    name: str
    process: subprocess.Popen[bytes]
    port_file: Path
    log: Path | None = None

    def ports(self, within_s: float = STARTED_WITHIN_S) -> dict[str, int]:
        """What it listens on, once it does.

        Raises:
            ServerEndedError: it does not.
        """
        deadline = time.monotonic() + within_s
        while not self.port_file.exists():
            self.check(deadline)
            time.sleep(_LOOK_S)
        ports: dict[str, int] = json.loads(self.port_file.read_text())
        return ports

    def wait_ready(self, within_s: float) -> None:
        """Waits until it answers that it is ready.

        Raises:
            ServerEndedError: it ended, or is not ready in time.
        """
        deadline = time.monotonic() + within_s
        address = f"http://127.0.0.1:{self.ports(within_s)['metrics_port']}/readyz"
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):  # 503 until it is
                return
            self.check(deadline)
            time.sleep(_LOOK_S)

    def check(self, deadline: float = float("inf")) -> None:
        """Sees that it lives, and that the time has not run out.

        Raises:
            ServerEndedError: one of the two.
        """
        code = self.process.poll()
        if code is not None or time.monotonic() > deadline:
            what = "is not there in time" if code is None else f"ended with code {code}"
            raise ServerEndedError(f"{self.name} {what}; see its log")


@contextlib.contextmanager
def serving(
    models: Path,
    folder: Path,
    settings: Mapping[str, Mapping[str, object]],
    *,
    environment: Mapping[str, str] | None = None,
    keep_logs: bool = False,
    ended_within_s: float = ENDED_WITHIN_S,
) -> Iterator[dict[str, Server]]:
    """The three servers, until the block ends.

    Args:
        models: as `make_models` writes them.
        folder: of ports, films and logs.
        settings: of each server by its name, beside those that join them.
        environment: of the processes, beside ours.
        keep_logs: whether each writes its log into a file of the folder.
        ended_within_s: a server that still lives so long after it was told to end is killed.
    """
    servers: dict[str, Server] = {}

    def start(name: str, **joined: object) -> Server:
        port_file = folder / f"{name}.json"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
        values = {"port": 0, "metrics_port": 0, "port_file": port_file, "log_level": "warning"}
        values |= {**joined, **settings.get(name, {})}
        inherited |= {**(environment or {})}
        inherited |= {f"HALFREEL_{name}_{key}".upper(): str(value) for key, value in values.items()}
        log = folder / f"{name}.log" if keep_logs else None
        with contextlib.ExitStack() as opened:
            stderr = None if log is None else opened.enter_context(log.open("ab"))
            process = subprocess.Popen([sys.executable, "-m", f"halfreel_{name}"], env=inherited, stderr=stderr)
        servers[name] = Server(name, process, port_file, log)
        return servers[name]

    try:
        start("llm", model=models / "chatglm3")
        start("video", model=models / "svd" / "svd-xt", keyframe_model=models / "svd" / "sd-turbo")
        addresses = {f"{name}_addresses": f"127.0.0.1:{servers[name].ports()['port']}" for name in ("llm", "video")}
        start("gateway", **addresses, data_dir=folder / "data")
        servers["gateway"].ports()
        yield servers
    finally:
        for server in reversed(servers.values()):
            server.process.terminate()
        deadline = time.monotonic() + ended_within_s
        for server in servers.values():
            try:
                server.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


def make_models(
    folder: Path,
    *,
    tiny: bool,
    llm_device: str,
    video_device: str,
    environment: Mapping[str, str] | None = None,
    within_s: float | None = None,
) -> None:
    """Writes both models, unless they are there, at the same time.

    Args:
        folder: where.
        tiny: the same shape of everything at a fraction of the size.
        llm_device: what draws the language model's weights.
        video_device: what draws the video models' weights.
        environment: of the processes, beside ours.
        within_s: the longest that it may take; None for any time.

    Raises:
        subprocess.SubprocessError: one was not written.
    """
    makers = ROOT / "tests" / "gpu"
    commands: list[list[Any]] = []
    if not (folder / "svd").exists():
        size = ["--size", "tiny"] if tiny else []
        commands.append([makers / "make_svd_xt.py", folder / "svd", *size, "--device", video_device])
    if not (folder / "chatglm3").exists():
        size = ["--tiny"] if tiny else []
        commands.append([makers / "make_chatglm3.py", folder / "chatglm3", *size, "--device", llm_device])
    values = {**os.environ, **(environment or {})}
    running = [
        subprocess.Popen([sys.executable, *map(str, command)], stdout=sys.stderr, env=values) for command in commands
    ]
    deadline = None if within_s is None else time.monotonic() + within_s
    try:
        for process in running:
            left = None if deadline is None else max(0.1, deadline - time.monotonic())
            if (code := process.wait(left)) != 0:
                raise subprocess.CalledProcessError(code, process.args)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
