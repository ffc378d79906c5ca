"""The peaks and seconds of one request's phases, added up window by window.

It does not know who runs, nor where the bytes come from: the monitor charges it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.memory_source import Bytes


@dataclass
class PhaseRecord:
    """One phase of one request, over all its parts."""

    peak: Bytes = field(default_factory=Bytes)
    seconds: float = 0.0


@dataclass(eq=False)
class RequestRecord:
    """One request, or work outside of any.

    Attributes:
        request_id: for the log; empty for work outside of any request.
        peak: the largest bytes of the process during its life.
        phases: in the order in which they first began.
        predicted_bytes: the reserved bytes that its plan expects of each phase.
    """

    request_id: str = ""
    peak: Bytes = field(default_factory=Bytes)
    phases: dict[str, PhaseRecord] = field(default_factory=dict)
    predicted_bytes: Mapping[str, int] = field(default_factory=dict)

    def charge(self, phase: str | None, window: Bytes, seconds: float) -> None:
        """A window of time has ended, of which the phase (None for none) had the innermost part."""
        self.peak = self.peak.max(window)
        if phase is not None:
            record = self.phases.setdefault(phase, PhaseRecord())
            record.peak = record.peak.max(window)
            record.seconds += seconds

    def message(self, phase: str) -> gpu_pb2.PhasePeak:
        """One phase as the contract has it."""
        record = self.phases[phase]
        message = gpu_pb2.PhasePeak(
            phase=phase,
            peak=record.peak.message(),
            predicted_reserved_bytes=self.predicted_bytes.get(phase, 0),
        )
        message.duration.FromNanoseconds(round(record.seconds * 1e9))
        return message

    def messages(self) -> Iterator[gpu_pb2.PhasePeak]:
        """All phases as the contract has them."""
        return (self.message(phase) for phase in self.phases)

    def copy(self) -> RequestRecord:
        """The record as it is now, for a reader who adds the window that has not ended."""
        phases = {name: PhaseRecord(phase.peak, phase.seconds) for name, phase in self.phases.items()}
        return RequestRecord(self.request_id, self.peak, phases, self.predicted_bytes)
