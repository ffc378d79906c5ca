"""Memory that ran out in the middle of a clip: told from other failures, and told to the client.

Knows nothing of what was being computed.
"""

from __future__ import annotations

import re

from halfreel_runtime.device import Device
from halfreel_runtime.errors import HalfreelError, OutOfMemory
from halfreel_runtime.failures import engine_error
from halfreel_runtime.memory import MemoryMonitor

_TRIED_TO_ALLOCATE = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def is_shortage(error: Exception) -> bool:
    """Tells whether memory ran out, on the device or on the host."""
    return not isinstance(error, HalfreelError) and isinstance(engine_error(error), OutOfMemory)


def shortage_error(memory: MemoryMonitor, device: Device, allocator_text: str) -> OutOfMemory:
    """Says how much memory was missing; the needed bytes are known from the allocator's words alone."""
    report = memory.report()
    on_gpu = device.kind == "cuda"
    free_bytes = report.devices[0].device_free_bytes if on_gpu else report.host.available_bytes
    metadata = {"free_bytes": str(free_bytes)}
    needed = ""
    if (match := _TRIED_TO_ALLOCATE.search(allocator_text)) is not None:
        needed_bytes = int(float(match[1]) * _UNITS[match[2].lower()])
        metadata["needed_bytes"] = str(needed_bytes)
        needed = f"{needed_bytes} more bytes were needed and "
    return OutOfMemory(
        f"the clip does not fit in memory: {needed}{free_bytes} are free; ask for a smaller width_px, height_px, "
        "frame_count or decode_chunk_frame_count",
        metadata=metadata,
    )
