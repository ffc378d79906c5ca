"""The GPUs as torch sees them, with the UUIDs by which NVML knows them.

It does not know which of them a server uses.
"""

from __future__ import annotations

import torch

from halfreel_runtime.device import Device


def cuda_devices() -> list[Device]:
    """Every GPU that torch can use, in torch's order; makes no CUDA context."""
    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(Device("cuda", index, f"GPU-{properties.uuid}", properties.name, f"cuda:{index}"))
    return devices
