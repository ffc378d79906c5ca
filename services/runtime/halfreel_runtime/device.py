"""The one device a server uses: found by name, index or UUID.

It does not know torch: `device_cuda` does, and is imported only where a GPU may be used.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass, field
from typing import Literal

from halfreel_runtime.errors import FailedPrecondition, InvalidArgument


@dataclass(frozen=True)
class Device:
    """What a model runs on.

    Attributes:
        kind: "cpu" or "cuda".
        index: torch's index of the GPU; 0 on a CPU. NVML may number the same GPU otherwise: match by `gpu_uuid`.
        gpu_uuid: "GPU-..." as the driver names it, "MIG-..." for a part of a GPU, or "cpu".
        name: the device's own name, or the processor's architecture.
        torch_name: what torch.device takes: "cuda:0" or "cpu".
        used_at_start_bytes: what all processes had taken of the GPU before this one touched it; 0 where the driver
            can't be asked.
    """

    kind: Literal["cpu", "cuda"]
    index: int
    gpu_uuid: str
    name: str
    torch_name: str
    used_at_start_bytes: int = field(default=0, compare=False)


CPU = Device("cpu", 0, "cpu", platform.machine(), "cpu")


def find_device(spec: str) -> Device:
    """The device a setting names.

    Args:
        spec: "auto" (the first GPU, or else the CPU), "cpu", "cuda" or "cuda:N" (torch's index), "GPU-..." or
            "MIG-..." (a UUID; that of a part of a GPU must be in CUDA_VISIBLE_DEVICES where that is set).

    Raises:
        InvalidArgument: it is none of these.
        FailedPrecondition: this machine has no such device.
    """
    if spec == "cpu":
        return CPU
    if spec.startswith("MIG-"):
        # CUDA shows a part of a GPU only where it is named so, before CUDA is touched.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", spec)
    cuda = _cuda_devices()
    if spec == "auto":
        return cuda[0] if cuda else CPU
    if spec.startswith(("GPU-", "MIG-")):
        found = [device for device in cuda if device.gpu_uuid == spec]
    elif spec == "cuda" or (spec.startswith("cuda:") and spec[5:].isdecimal()):
        index = int(spec[5:] or 0) if spec != "cuda" else 0
        found = [device for device in cuda if device.index == index]
    else:
        raise InvalidArgument(f"device is {spec!r}; it must be auto, cpu, cuda:N, GPU-uuid or MIG-uuid.")
    if not found:
        have = ", ".join(f"{device.torch_name} ({device.gpu_uuid})" for device in cuda) or "no GPU that torch can use"
        raise FailedPrecondition(f"device is {spec!r}; this machine has {have}.")
    return found[0]


def _cuda_devices() -> list[Device]:
    if importlib.util.find_spec("torch") is None:
        return []
    from halfreel_runtime.device_cuda import cuda_devices

    return cuda_devices()
