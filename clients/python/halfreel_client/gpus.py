"""The NVIDIA GPUs of this machine, as its driver tells them; never through torch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pynvml

# In a process of its own: once asked, CUDA keeps to the environment that it found.
_ASK_CUDA = """
import ctypes, uuid
cuda = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int()
if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
    raise SystemExit(1)
for number in range(count.value):
    found = (ctypes.c_ubyte * 16)()
    if cuda.cuDeviceGetUuid(ctypes.byref(found), number):
        raise SystemExit(1)
    print(f"GPU-{uuid.UUID(bytes=bytes(found))}")
"""
_CUDA_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    driver_version: str


def find_gpus() -> list[Gpu]:
    """The GPUs that programs started now may use, in the driver's order; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver_version = str(pynvml.nvmlSystemGetDriverVersion())
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            gpus.append(
                Gpu(
                    str(pynvml.nvmlDeviceGetUUID(handle)),
                    str(pynvml.nvmlDeviceGetName(handle)),
                    int(memory.total),
                    int(memory.free),
                    driver_version,
                )
            )
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    choice = os.environ.get("CUDA_VISIBLE_DEVICES")
    if choice is None:
        return gpus
    by_cuda = cuda_uuids()
    if by_cuda is None:
        return visible(gpus, choice)
    return [gpu for uuid in by_cuda for gpu in gpus if gpu.uuid == uuid]


def cuda_uuids() -> list[str] | None:
    """The UUIDs of the GPUs that CUDA shows, in its order; None where CUDA can't be asked.

    CUDA numbers GPUs by speed and NVML by bus, so CUDA alone knows which ones the numbers in CUDA_VISIBLE_DEVICES mean.
    """
    try:
        done = subprocess.run([sys.executable, "-c", _ASK_CUDA], capture_output=True, text=True, timeout=_CUDA_WITHIN_S)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.split() if done.returncode == 0 else None


def visible(gpus: list[Gpu], choice: str | None) -> list[Gpu]:
    """Those of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; as CUDA, it ends at the first unknown one.

    Numbers are taken in the order of `gpus`, which is CUDA's only where all GPUs are alike.
    """
    if choice is None:
        return gpus
    chosen: list[Gpu] = []
    for word in choice.split(","):
        word = word.strip()
        if word.isdecimal():
            found = gpus[int(word) : int(word) + 1]
        else:
            found = [gpu for gpu in gpus if word and gpu.uuid.startswith(word)][:1]
        if not found:
            break
        chosen += found
    return chosen
