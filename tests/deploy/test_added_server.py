"""A model server that is added behind a DNS name is found by a gateway that is already connected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile import ROOT

# Two servers, of which DNS tells one, then both; a stream runs meanwhile, for longer than a server keeps a connection.
# /etc/hosts is this namespace's own.
SCRIPT = """
import subprocess, sys, threading, time
from pathlib import Path
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel_gateway.channels import balanced_channel

folder, server = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(Path(server).parent))
from small_server import order

logs = [folder / "one.log", folder / "two.log"]
processes = [
    subprocess.Popen([sys.executable, server, "--host", host, "--port", "7601"], stderr=log.open("wb"))
    for host, log in zip(("127.0.0.1", "127.0.0.2"), logs)
]
hosts = Path("/etc/hosts")
hosts.write_text("127.0.0.1 llm.test\\n")
while not all('"serving"' in log.read_text() for log in logs):
    time.sleep(0.1)
stub = llm_pb2_grpc.LlmServiceStub(balanced_channel(["llm.test:7601"], "halfreel.llm.v1.LlmService"))
stub.GetModel(llm_pb2.GetModelRequest(), wait_for_ready=True, timeout=30)
hosts.write_text("127.0.0.1 llm.test\\n127.0.0.2 llm.test\\n")
texts = []
thread = threading.Thread(target=lambda: texts.extend(stub.Generate(order("sleep 0.5 150"))))
thread.start()
began = time.monotonic()
while "LlmService/GetModel" not in logs[1].read_text():
    assert time.monotonic() - began < 100, "the second server was not found"
    stub.GetModel(llm_pb2.GetModelRequest(), timeout=5)
    time.sleep(0.5)
print("found after", round(time.monotonic() - began), "s")
thread.join()
assert len(texts) == 151, "the stream that began before was cut"
for process in processes:
    process.terminate()
    assert process.wait(30) == 0
"""


@pytest.mark.namespaces
def test_it_is_found(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("")
    setup = f'ip link set lo up && mount --bind {hosts} /etc/hosts && exec "$@"'
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(ROOT / "tests" / "small_server.py")]
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation=private", "sh", "-c", setup, "sh", *command],
        capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
