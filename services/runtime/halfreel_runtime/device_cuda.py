"""The GPUs as torch sees them, with the UUIDs by which NVML knows them.

It does not know which of them a server uses.
"""

from __future__ import annotations

import torch

from halfreel_runtime import nvml
from halfreel_runtime.device import Device


def cuda_devices() -> list[Device]:
    """Every GPU that torch can use, in torch's order."""
    used_bytes = nvml.used_bytes()  # first: the calls below may make a CUDA context, which is this process's
    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        uuid = f"GPU-{properties.uuid}"
        devices.append(Device("cuda", index, uuid, properties.name, f"cuda:{index}", used_bytes.get(uuid, 0)))
    return devices
