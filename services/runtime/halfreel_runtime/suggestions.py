"""What would help while memory is short: for people as a text, for programs as a code with the bytes it saves.

It does not know the model: a service adds what only it can tell, such as a smaller decode chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from halfreel.gpu.v1 import gpu_pb2

# Less is not worth a word.
_LEAST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class MemoryLimits:
    """When memory counts as short.

    Attributes:
        warn_ratio: of the budget, or of the device where there is no budget, that is in use; 0 never warns.
        min_free_bytes: what should stay free of it; 0 for nothing.
    """

    warn_ratio: float = 0.0
    min_free_bytes: int = 0


def under_pressure(device: gpu_pb2.DeviceMemory, limits: MemoryLimits) -> bool:
    """Whether memory is short; False where nothing is known of it."""
    own = device.reserved_bytes + device.context_bytes
    used, whole = (own, device.budget_bytes) if device.budget_bytes else (0, 0)
    if limits.warn_ratio and whole and used >= limits.warn_ratio * whole:
        return True
    used, whole = device.device_used_bytes, device.device_total_bytes
    if limits.warn_ratio and used and whole and used >= limits.warn_ratio * whole:
        return True
    known = bool(device.budget_bytes or device.device_used_bytes)
    return known and device.headroom_bytes < limits.min_free_bytes


def suggestions(
    device: gpu_pb2.DeviceMemory, state: gpu_pb2.ModelState.ValueType, more: Iterable[gpu_pb2.Suggestion] = ()
) -> list[gpu_pb2.Suggestion]:
    """What would help, that which saves most first.

    Args:
        device: the memory as it is.
        state: where the model's weights are.
        more: what the service itself suggests.
    """
    found = list(more)
    cached = device.reserved_bytes - device.allocated_bytes
    if cached >= _LEAST_BYTES:
        found.append(
            gpu_pb2.Suggestion(
                code="clear_memory",
                text=f"Call ClearMemory: {_text(cached)} are cached and unused.",
                saved_bytes=cached,
            )
        )
    idle = state == gpu_pb2.MODEL_STATE_AWAKE and not device.current_phase
    if idle and device.allocated_bytes >= _LEAST_BYTES and device.device_kind == gpu_pb2.DEVICE_KIND_CUDA:
        held = device.allocated_bytes
        found.append(
            gpu_pb2.Suggestion(
                code="sleep",
                text=f"Call Sleep while nobody asks: {_text(held)} leave the device; the next request waits for them.",
                saved_bytes=held,
            )
        )
    if device.device_kind == gpu_pb2.DEVICE_KIND_CUDA and device.other_processes_bytes >= _LEAST_BYTES:
        held = device.other_processes_bytes
        found.append(
            gpu_pb2.Suggestion(
                code="free_device",
                text=f"Other processes hold {_text(held)} of the device; let them sleep, or end them.",
                saved_bytes=held,
            )
        )
    if device.budget_bytes and device.device_free_bytes - device.headroom_bytes >= _LEAST_BYTES:
        more_room = device.device_free_bytes - device.headroom_bytes
        found.append(
            gpu_pb2.Suggestion(
                code="raise_budget", text=f"Raise the memory budget: the device has {_text(more_room)} more free."
            )
        )
    return sorted(found, key=lambda each: -each.saved_bytes)


def _text(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
