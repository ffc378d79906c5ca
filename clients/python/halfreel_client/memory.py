"""What a model server uses of memory: the figures of halfreel.gpu.v1, as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from halfreel.gateway.v1 import gateway_pb2
from halfreel.gpu.v1 import gpu_pb2
from halfreel_client.clock import member_of, seconds_of, time_of


class DeviceKind(StrEnum):
    """What a device is."""

    UNKNOWN = "unknown"
    CPU = "cpu"
    CUDA = "cuda"


class ServerKind(StrEnum):
    """What a model server does."""

    UNKNOWN = "unknown"
    LLM = "llm"
    VIDEO = "video"


class MemoryProfile(StrEnum):
    """How memory is weighed against time."""

    UNKNOWN = "unknown"
    UNSPECIFIED = "unspecified"
    AUTO = "auto"
    SAVER = "saver"
    BALANCED = "balanced"
    QUALITY = "quality"


class ModelState(StrEnum):
    """Where a model's weights are."""

    UNKNOWN = "unknown"
    UNSPECIFIED = "unspecified"
    LOADING = "loading"
    AWAKE = "awake"
    FALLING_ASLEEP = "falling_asleep"
    ASLEEP = "asleep"
    WAKING = "waking"
    WAKE_FAILED = "wake_failed"


@dataclass(frozen=True, slots=True)
class MemoryPeak:
    """The largest figures seen in some window."""

    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """The peak of one phase of work, such as "denoise", how long the phase ran in seconds, and what a plan predicted.

    `predicted_reserved_bytes` is 0 where nothing was planned.
    """

    phase: str
    peak: MemoryPeak
    duration_s: float
    predicted_reserved_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The memory of one device as one server sees it; on a CPU the figures are of the server's process."""

    gpu_uuid: str
    device_name: str
    device_kind: DeviceKind
    device_total_bytes: int
    device_used_bytes: int
    device_free_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    context_bytes: int
    process_peak: MemoryPeak
    request_peak: MemoryPeak
    phase_peaks: tuple[PhasePeak, ...]
    current_phase: str
    budget_bytes: int
    recent_peak: MemoryPeak
    other_processes_bytes: int
    headroom_bytes: int


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host's memory and the server's part of it."""

    total_bytes: int
    available_bytes: int
    process_resident_bytes: int
    process_peak_resident_bytes: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Something that would help; `saved_bytes` is 0 where that is not known."""

    code: str
    text: str
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class LeverStatus:
    """A lever as it stands on a server; `reason` says why, where it is not what was asked for."""

    lever: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """All that one server knows of its memory at one moment."""

    read_time: datetime
    devices: tuple[DeviceMemory, ...]
    host: HostMemory
    model_state: ModelState
    suggestions: tuple[Suggestion, ...]
    levers: tuple[LeverStatus, ...]


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """The memory of one model server that a gateway knows; `problem` says why there is no report."""

    kind: ServerKind
    address: str
    report: MemoryReport | None
    problem: str


def _peak_from(message: gpu_pb2.MemoryPeak) -> MemoryPeak:
    return MemoryPeak(message.allocated_bytes, message.reserved_bytes)


def phase_peaks_from(messages: Iterable[gpu_pb2.PhasePeak]) -> tuple[PhasePeak, ...]:
    """The peaks of a job's phases."""
    return tuple(
        PhasePeak(item.phase, _peak_from(item.peak), seconds_of(item.duration), item.predicted_reserved_bytes)
        for item in messages
    )


def _device_from(message: gpu_pb2.DeviceMemory) -> DeviceMemory:
    return DeviceMemory(
        gpu_uuid=message.gpu_uuid,
        device_name=message.device_name,
        device_kind=member_of(DeviceKind, gpu_pb2.DeviceKind, message.device_kind, "DEVICE_KIND_"),
        device_total_bytes=message.device_total_bytes,
        device_used_bytes=message.device_used_bytes,
        device_free_bytes=message.device_free_bytes,
        allocated_bytes=message.allocated_bytes,
        reserved_bytes=message.reserved_bytes,
        context_bytes=message.context_bytes,
        process_peak=_peak_from(message.process_peak),
        request_peak=_peak_from(message.request_peak),
        phase_peaks=phase_peaks_from(message.phase_peaks),
        current_phase=message.current_phase,
        budget_bytes=message.budget_bytes,
        recent_peak=_peak_from(message.recent_peak),
        other_processes_bytes=message.other_processes_bytes,
        headroom_bytes=message.headroom_bytes,
    )


def report_from(message: gpu_pb2.MemoryReport) -> MemoryReport:
    """The report of a message."""
    host = message.host
    return MemoryReport(
        read_time=time_of(message.read_time),
        devices=tuple(_device_from(device) for device in message.devices),
        host=HostMemory(
            host.total_bytes,
            host.available_bytes,
            host.process_resident_bytes,
            host.process_peak_resident_bytes,
        ),
        model_state=member_of(ModelState, gpu_pb2.ModelState, message.model_state, "MODEL_STATE_"),
        suggestions=tuple(Suggestion(each.code, each.text, each.saved_bytes) for each in message.suggestions),
        levers=tuple(LeverStatus(each.lever, each.value, each.reason) for each in message.levers),
    )


def profile_number(profile: MemoryProfile) -> gpu_pb2.MemoryProfile.ValueType:
    """The contract's number of a profile."""
    return gpu_pb2.MemoryProfile.Value(f"MEMORY_PROFILE_{profile.upper()}")


def profile_from(value: int) -> MemoryProfile | None:
    """The profile of a message's number; None where none was asked for."""
    return member_of(MemoryProfile, gpu_pb2.MemoryProfile, value, "MEMORY_PROFILE_") if value else None


def server_memory_from(message: gateway_pb2.ServerMemory) -> ServerMemory:
    """One server's entry of a gateway's answer."""
    return ServerMemory(
        kind=member_of(ServerKind, gateway_pb2.ServerKind, message.kind, "SERVER_KIND_"),
        address=message.address,
        report=report_from(message.report) if message.HasField("report") else None,
        problem=message.problem,
    )
