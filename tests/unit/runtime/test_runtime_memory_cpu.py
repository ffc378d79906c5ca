"""The resident bytes of a process that runs on a CPU."""

from __future__ import annotations

import subprocess
import sys

FORKED = """
import os, psutil
from halfreel_runtime.memory_cpu import CpuMemorySource

def told():
    return CpuMemorySource().live().reserved, psutil.Process().memory_info().rss

def check(told_bytes, true_bytes):
    assert abs(told_bytes - true_bytes) < 2**20, (told_bytes, true_bytes)

check(*told())
pid = os.fork()
if pid == 0:
    more = bytearray(os.urandom(64 * 2**20))
    check(*told())
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
check(*told())
"""


def test_a_process_and_its_forked_child_are_each_told_of_themselves() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
