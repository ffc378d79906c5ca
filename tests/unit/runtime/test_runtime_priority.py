"""A thread that computes on the CPU is behind the others of its process; one that feeds a GPU is not."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from halfreel_runtime.device import CPU, Device
from halfreel_runtime.priority import give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux knows priorities of threads")


@pytest.mark.parametrize(("device", "lower"), [(CPU, True), (Device("cuda", 0, "GPU-1", "card", "cuda:0"), False)])
def test_priority(device: Device, lower: bool) -> None:
    seen: list[int] = []

    def compute() -> None:
        give_way(device)
        inherits = threading.Thread(
            target=lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        )
        inherits.start()
        inherits.join()

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert (seen[0] > own) is lower
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
