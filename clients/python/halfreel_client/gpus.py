"""The NVIDIA GPUs of this machine, as its driver tells them; never through torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pynvml


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
    return visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: list[Gpu], choice: str | None) -> list[Gpu]:
    """Those of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; as CUDA, it ends at the first unknown one."""
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
