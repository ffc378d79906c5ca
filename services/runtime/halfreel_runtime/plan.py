"""The memory that a request will take, before it runs: its phases, the room there is for them, and the verdict.

It does not know any model: each service predicts its own phases. It reads no device: `Room` is given.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.errors import ResourceExhausted


class Profile(enum.Enum):
    """How a plan weighs memory against time; the value is the word that settings and flags use."""

    AUTO = "auto"
    SAVER = "saver"
    BALANCED = "balanced"
    QUALITY = "quality"

    @classmethod
    def of(cls, message: gpu_pb2.MemoryProfile.ValueType, default: Profile) -> Profile:
        """The profile of a request; `default` where it names none or one that this version doesn't know."""
        return _PROFILES.get(message, default)

    @property
    def message(self) -> gpu_pb2.MemoryProfile.ValueType:
        """As the contract has it."""
        return next(value for value, profile in _PROFILES.items() if profile is self)


_PROFILES = {
    gpu_pb2.MEMORY_PROFILE_AUTO: Profile.AUTO,
    gpu_pb2.MEMORY_PROFILE_SAVER: Profile.SAVER,
    gpu_pb2.MEMORY_PROFILE_BALANCED: Profile.BALANCED,
    gpu_pb2.MEMORY_PROFILE_QUALITY: Profile.QUALITY,
}


class Verdict(enum.Enum):
    """What a plan comes to; the value is the contract's."""

    FITS = gpu_pb2.PLAN_VERDICT_FITS
    FITS_ALONE = gpu_pb2.PLAN_VERDICT_FITS_ALONE
    CHEAPER_FITS = gpu_pb2.PLAN_VERDICT_CHEAPER_FITS
    REFUSED = gpu_pb2.PLAN_VERDICT_REFUSED


@dataclass(frozen=True)
class Room:
    """What a server may take of a device, and why no more.

    Attributes:
        total_bytes: bytes that the device has.
        other_bytes: bytes that other processes hold on it.
        sleeping_bytes: of these, what servers would give back that can be asked to sleep.
        budget_bytes: hard budget of this server, allocator and context together; 0 for none.
        min_free_bytes: bytes that must stay free on the device for others.
    """

    total_bytes: int
    other_bytes: int = 0
    sleeping_bytes: int = 0
    budget_bytes: int = 0
    min_free_bytes: int = 0

    @property
    def available_bytes(self) -> int:
        """What this server may take now, allocator and context together."""
        return available_bytes(self.total_bytes, self.other_bytes, self.budget_bytes, self.min_free_bytes)

    @property
    def alone_bytes(self) -> int:
        """What it may take once the servers that can be asked to sleep do so."""
        return available_bytes(
            self.total_bytes, self.other_bytes - self.sleeping_bytes, self.budget_bytes, self.min_free_bytes
        )


def available_bytes(total_bytes: int, other_bytes: int, budget_bytes: int = 0, min_free_bytes: int = 0) -> int:
    """What a server may take of a device: its budget, or less where others hold the rest; never below 0."""
    free = max(0, total_bytes - max(0, other_bytes) - min_free_bytes)
    return min(free, budget_bytes) if budget_bytes else free


@dataclass(frozen=True)
class Phase:
    """What one phase of a request is expected to take.

    Attributes:
        name: as the memory monitor calls the phase.
        resident_bytes: weights, caches and workspaces that are on the device meanwhile.
        activation_bytes: the phase's own tensors on top, at most.
        reserved_bytes: what the allocator will hold at most.
        seconds: how long it takes; None where nothing is known of the device's speed.
    """

    name: str
    resident_bytes: int
    activation_bytes: int
    reserved_bytes: int
    seconds: float | None = None

    def message(self) -> gpu_pb2.PhasePlan:
        """As the contract has it."""
        return gpu_pb2.PhasePlan(
            phase=self.name,
            resident_bytes=self.resident_bytes,
            activation_bytes=self.activation_bytes,
            peak_reserved_bytes=self.reserved_bytes,
            duration=_duration(self.seconds),
        )


@dataclass(frozen=True)
class Price:
    """What one lever saves of the request's peak, and what it costs; `seconds` is None where no speed is known."""

    lever: str
    value: str
    saved_bytes: int
    seconds: float | None
    chosen: bool

    def message(self) -> gpu_pb2.LeverPrice:
        """As the contract has it."""
        return gpu_pb2.LeverPrice(
            lever=self.lever,
            value=self.value,
            saved_bytes=self.saved_bytes,
            added_duration=_duration(self.seconds),
            chosen=self.chosen,
        )


@dataclass(frozen=True)
class Plan:
    """One way to run a request, held against the room for it.

    Attributes:
        profile: what the plan follows.
        phases: in the order in which they run.
        context_bytes: what the driver keeps for the process beside the allocator.
        room: what the server may take.
        prices: of the levers, from here.
        coefficients: "shipped", or "calibrated" on this card.
        cheaper_fits: whether a cheaper form of the request would fit.
    """

    profile: Profile
    phases: tuple[Phase, ...]
    context_bytes: int
    room: Room
    prices: tuple[Price, ...] = ()
    coefficients: str = "shipped"
    cheaper_fits: bool = False

    @property
    def reserved_bytes(self) -> int:
        """What the allocator will hold at most."""
        return max((phase.reserved_bytes for phase in self.phases), default=0)

    @property
    def needed_bytes(self) -> int:
        """What the card must give up for it: allocator and context."""
        return self.reserved_bytes + self.context_bytes

    @property
    def seconds(self) -> float | None:
        """How long the request takes; None unless that is known of every phase."""
        known = [phase.seconds for phase in self.phases if phase.seconds is not None]
        return sum(known) if len(known) == len(self.phases) and known else None

    @property
    def verdict(self) -> Verdict:
        """Whether it fits."""
        if self.needed_bytes <= self.room.available_bytes:
            return Verdict.FITS
        if self.needed_bytes <= self.room.alone_bytes:
            return Verdict.FITS_ALONE
        return Verdict.CHEAPER_FITS if self.cheaper_fits else Verdict.REFUSED

    @property
    def fits(self) -> bool:
        """Whether it fits, be it after a neighbour has gone to sleep."""
        return self.needed_bytes <= self.room.alone_bytes

    def predicted_bytes(self) -> dict[str, int]:
        """The allocator's largest bytes of each phase, by its name."""
        return {phase.name: phase.reserved_bytes for phase in self.phases}

    def message(self) -> gpu_pb2.MemoryPlan:
        """As the contract has it."""
        return gpu_pb2.MemoryPlan(
            verdict=self.verdict.value,
            profile=self.profile.message,
            phases=[phase.message() for phase in self.phases],
            peak_reserved_bytes=self.reserved_bytes,
            context_bytes=self.context_bytes,
            available_bytes=self.room.available_bytes,
            other_processes_bytes=max(0, self.room.other_bytes),
            budget_bytes=self.room.budget_bytes,
            duration=_duration(self.seconds),
            lever_prices=[price.message() for price in self.prices],
            coefficients=self.coefficients,
        )


class PlanRefused(ResourceExhausted):
    """The request would not fit, and was not begun."""

    default_reason = "PLAN_REFUSED"

    @classmethod
    def of(cls, plan: Plan, *, what: str, suggestion: str, fields: dict[str, str]) -> PlanRefused:
        """The refusal of a plan.

        Args:
            plan: the plan that does not fit.
            what: the request for people, such as "a clip of 1024x576 px and 25 frames".
            suggestion: what would fit, for people; empty where nothing does.
            fields: the same for programs, such as suggested_width_px.
        """
        room = plan.room
        held = f", of which other processes hold {room.other_bytes}" if room.other_bytes > 0 else ""
        budget = f" within a budget of {room.budget_bytes}" if room.budget_bytes else ""
        text = (
            f"{what} needs {plan.needed_bytes} bytes; {room.available_bytes} are free{budget} of a device of "
            f"{room.total_bytes}{held}; {suggestion or 'no smaller form of it fits either'}."
        )
        metadata = {"needed_bytes": str(plan.needed_bytes), "free_bytes": str(room.available_bytes)}
        return cls(text, metadata=metadata | fields)


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
