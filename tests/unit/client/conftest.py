"""A small server to supervise: a real process that binds, answers health checks, and misbehaves as it is told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from halfreel_client.supervisor.child import ServerSpec

SERVER = """
import json, os, signal, subprocess, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if os.environ.get("TEST_REFUSE"):
    print(json.dumps({"level": "error", "event": "not_started", "reason": os.environ["TEST_REFUSE"]}), file=sys.stderr)
    sys.exit(2)
if os.environ.get("TEST_DIE_FIRST"):
    print("no model there", file=sys.stderr)
    sys.exit(1)
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
if os.environ.get("TEST_GRANDCHILD"):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if os.environ.get("TEST_STUBBORN"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
servicer = health.HealthServicer()
server = grpc.server(ThreadPoolExecutor(4))
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
port = server.add_insecure_port("127.0.0.1:" + flags["--port"])
servicer.set("test.Service", health_pb2.HealthCheckResponse.NOT_SERVING)
server.start()
temporary = flags["--port-file"] + ".tmp"
with open(temporary, "w") as file:
    json.dump({"port": port, "metrics_port": 0, "pid": os.getpid()}, file)
os.replace(temporary, flags["--port-file"])
time.sleep(float(os.environ.get("TEST_LOAD_S", "0.2")))
servicer.set("test.Service", health_pb2.HealthCheckResponse.SERVING)
print(json.dumps({"level": "error", "event": "low_memory", "free_bytes": 5, "argv": sys.argv[1:]}), file=sys.stderr)
time.sleep(600)
"""


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., ServerSpec]:
    """Makes the spec of a test server by its name; keywords that begin with TEST_ go to its environment."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "halfreel_test_server.py").write_text(SERVER)

    def make(name: str, **keywords: object) -> ServerSpec:
        environment = {key: str(value) for key, value in keywords.items() if key.startswith("TEST_")}
        rest = {key: value for key, value in keywords.items() if not key.startswith("TEST_")}
        return ServerSpec(
            name,
            "halfreel_test_server",
            "test.Service",
            environment={
                "PYTHONPATH": os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")]),
                **environment,
            },
            **rest,
        )

    return make


def until(true: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    return until


@pytest.fixture(name="alive")
def alive_fixture() -> Callable[[int], bool]:
    return alive
