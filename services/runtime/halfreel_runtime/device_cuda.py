"""The GPUs as torch sees them, with the UUIDs by which NVML knows them.

It does not know which of them a server uses.
"""

from __future__ import annotations

import os

import torch

from halfreel_runtime import nvml
from halfreel_runtime.device import Device


def cuda_devices() -> list[Device]:
    """Every GPU that torch can use, in torch's order."""
    used_bytes = nvml.used_bytes()  # first: the calls below may make a CUDA context, which is this process's
    if not torch.cuda.is_available():
        return []
    devices = []
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        uuid = f"GPU-{properties.uuid}"
        if index < len(named) and named[index].startswith("MIG-"):
            uuid = named[index]  # torch tells the UUID of the whole GPU, or of the part without its "MIG-"
        devices.append(Device("cuda", index, uuid, properties.name, f"cuda:{index}", used_bytes.get(uuid, 0)))
    return devices
