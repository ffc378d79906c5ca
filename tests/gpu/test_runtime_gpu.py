"""The runtime on a real GPU: its figures against the driver's, out of memory, and reports while the GPU computes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import find_device
from halfreel_runtime.engine import Engine, EngineState, Queued
from halfreel_runtime.errors import OutOfMemory
from halfreel_runtime.memory import MemoryMonitor

pytestmark = pytest.mark.gpu
MIB = 2**20

# A process of its own, so that nothing of CUDA has been touched before.
AGAINST_THE_DRIVER = """
import json, pynvml
pynvml.nvmlInit()
before = {i: pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(i)).used
          for i in range(pynvml.nvmlDeviceGetCount())}
from halfreel_runtime.device import find_device
from halfreel_runtime.memory import MemoryMonitor
device = find_device("auto")
monitor = MemoryMonitor(device)
import torch
with monitor.phase("load"):
    weights = torch.randn(4096, 4096, device=device.torch_name, dtype=torch.float16)
    images = torch.randn(4, 64, 256, 256, device=device.torch_name, dtype=torch.float16)
with monitor.request("r"), monitor.phase("denoise"):
    for _ in range(3):
        weights = torch.tanh(weights @ weights)
        kernel = torch.randn(64, 64, 3, 3, device=device.torch_name, dtype=torch.float16)
        images = torch.nn.functional.conv2d(images, kernel, padding=1)
    torch.cuda.synchronize()
handle = pynvml.nvmlDeviceGetHandleByUUID(device.gpu_uuid)
index = pynvml.nvmlDeviceGetIndex(handle)
taken = pynvml.nvmlDeviceGetMemoryInfo(handle).used - before[index]
report = monitor.report().devices[0]
print(json.dumps({"taken": taken, "reserved": report.reserved_bytes, "context": report.context_bytes}))
"""


def test_reserved_and_context_agree_with_what_the_driver_saw_taken() -> None:
    done = subprocess.run([sys.executable, "-c", AGAINST_THE_DRIVER], check=True, capture_output=True, text=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["context"] > 64 * MIB, "a context is never free"
    assert abs(seen["reserved"] + seen["context"] - seen["taken"]) <= 64 * MIB


def test_a_phase_notices_256_mib() -> None:
    import torch

    device = find_device("auto")
    monitor = MemoryMonitor(device)
    with monitor.request("r") as request:
        with monitor.phase("denoise"):
            block = torch.empty(256 * MIB, dtype=torch.uint8, device=device.torch_name)
            del block
        with monitor.phase("decode"):
            torch.empty(MIB, dtype=torch.uint8, device=device.torch_name)
    peaks = {each.phase: each.peak.allocated_bytes for each in request.phase_peaks}
    assert 255 * MIB <= peaks["denoise"] - peaks["decode"] <= 256 * MIB
    before = monitor.report().devices[0].reserved_bytes
    assert monitor.clear() >= 0
    assert monitor.report().devices[0].reserved_bytes <= before


async def test_out_of_memory_fails_the_request_and_leaves_the_engine_as_it_was() -> None:
    import torch

    device = find_device("auto")
    engine: Engine[str] = Engine(name="gpu", max_waiting_count=1)
    engine.start(lambda: None)
    monitor = MemoryMonitor(device)

    def too_much(token: CancelToken) -> Iterator[str]:
        blocks = []
        while True:
            blocks.append(torch.empty(2**32, dtype=torch.uint8, device=device.torch_name))
            yield "more"

    while engine.state is not EngineState.SERVING:
        await asyncio.sleep(0.01)
    before = torch.cuda.memory_allocated(device.index)
    with pytest.raises(OutOfMemory):
        async for _ in engine.run(too_much):
            pass
    while engine.running_count:
        await asyncio.sleep(0.01)
    assert torch.cuda.memory_allocated(device.index) == before
    assert monitor.clear() >= 0
    assert [event async for event in engine.run(lambda token: iter(["well"]))] == [Queued(0), "well"]
    assert engine.close()


def test_a_report_does_not_wait_for_the_gpu() -> None:
    import torch

    device = find_device("auto")
    monitor = MemoryMonitor(device)
    matrix = torch.randn(16384, 16384, device=device.torch_name, dtype=torch.float16)
    torch.cuda.synchronize()
    for _ in range(50):
        matrix @ matrix
    seconds = []
    for _ in range(100):
        began = time.perf_counter()
        monitor.report()
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[50] < 0.001
    torch.cuda.synchronize()
