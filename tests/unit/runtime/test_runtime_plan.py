"""Budgets as people write them, the room that they leave, and the verdicts of plans."""

from __future__ import annotations

from typing import Any

import pytest

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.budget import Budget, parse_budget, parse_bytes
from halfreel_runtime.device import CPU, Device
from halfreel_runtime.errors import FailedPrecondition, InvalidArgument
from halfreel_runtime.memory_limit import MemoryLimit
from halfreel_runtime.plan import Phase, Plan, PlanRefused, Profile, Room, Verdict, available_bytes
from halfreel_runtime.settings import ModelServerSettings, SettingsError, read_settings

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("80%", Budget(ratio=0.8)),
        (" 12.5 % ", Budget(ratio=0.125)),
        ("12GiB", Budget(amount_bytes=12 * GIB)),
        ("12 gib", Budget(amount_bytes=12 * GIB)),
        ("1.5GB", Budget(amount_bytes=1_500_000_000)),
        ("4096", Budget(amount_bytes=4096)),
        ("none", Budget()),
        ("0", Budget()),
        ("", Budget()),
    ],
)
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["101%", "0%", "-3%", "12 apples", "GiB", "twelve", "1e9", "nan%"])
def test_what_is_no_budget_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidArgument, match="memory_budget is") as caught:
        parse_budget(text)
    assert repr(text) in caught.value.message


def test_an_amount_is_not_a_part() -> None:
    with pytest.raises(InvalidArgument):
        parse_bytes("80%")


def test_a_part_is_of_the_device_and_an_amount_must_fit_it() -> None:
    assert parse_budget("80%").of(10 * GIB) == 8 * GIB
    assert parse_budget("12GiB").of(24 * GIB) == 12 * GIB
    assert parse_budget("none").of(24 * GIB) == 0
    with pytest.raises(FailedPrecondition, match=f"memory_budget is {12 * GIB} bytes; the device has {8 * GIB}"):
        parse_budget("12GiB").of(8 * GIB)


def test_a_setting_says_what_a_budget_must_be() -> None:
    with pytest.raises(SettingsError, match="it must be an amount such as 12GiB, or a part of the device such as 80%"):
        read_settings(ModelServerSettings, "video", ["--memory-budget", "lots"], {})
    with pytest.raises(SettingsError, match="min-free-memory is 'lots'"):
        read_settings(ModelServerSettings, "video", ["--min-free-memory", "lots"], {})
    assert read_settings(ModelServerSettings, "video", ["--memory-budget", "80%"], {}).memory_budget == "80%"


def test_a_limit_is_of_the_device() -> None:
    settings = ModelServerSettings(memory_budget="50%", min_free_memory="1GiB")
    limit = MemoryLimit.of(settings, CPU)
    assert limit.budget_bytes == limit.total_bytes // 2
    assert limit.min_free_bytes == GIB
    limit.enforce()  # nothing to do on a CPU
    room = limit.room(limit.total_bytes * 3 // 4)
    assert room.available_bytes == limit.total_bytes - limit.total_bytes * 3 // 4 - GIB
    with pytest.raises(FailedPrecondition, match="the device has"):
        MemoryLimit.of(ModelServerSettings(memory_budget=f"{limit.total_bytes + 1}"), CPU)


def test_the_allocator_is_told_what_the_budget_leaves_beside_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    told: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, index: told.append((part, index)))
    gpu = Device("cuda", 1, "GPU-1", "a card", "cuda:1")
    MemoryLimit(gpu, 16 * GIB, 9 * GIB, 0).enforce(context_bytes=GIB)
    MemoryLimit(gpu, 16 * GIB, GIB, 0).enforce(context_bytes=2 * GIB)
    MemoryLimit(gpu, 16 * GIB, 0, 0).enforce()
    MemoryLimit(CPU, 16 * GIB, GIB, 0).enforce()
    assert told == [(0.5, 1), (0.0, 1)]


@pytest.mark.parametrize(
    ("total", "other", "budget", "min_free", "available"),
    [
        (24, 0, 0, 0, 24),
        (24, 10, 0, 0, 14),
        (24, 10, 12, 0, 12),
        (24, 20, 12, 0, 4),
        (24, 20, 12, 2, 2),
        (24, 30, 12, 0, 0),
        (24, -1, 0, 0, 24),
    ],
)
def test_available_is_the_budget_or_what_others_leave(
    total: int, other: int, budget: int, min_free: int, available: int
) -> None:
    assert available_bytes(total, other, budget, min_free) == available


def plan(reserved: int, context: int, room: Room, **changes: Any) -> Plan:
    phases = (Phase("load", 1, 0, 2, 1.0), Phase("denoise", 3, reserved - 4, reserved, 2.0))
    return Plan(Profile.BALANCED, phases, context, room, **changes)


@pytest.mark.parametrize(
    ("reserved", "cheaper", "verdict"),
    [
        (9, False, Verdict.FITS),
        (10, False, Verdict.FITS_ALONE),
        (14, True, Verdict.FITS_ALONE),
        (15, True, Verdict.CHEAPER_FITS),
        (15, False, Verdict.REFUSED),
    ],
)
def test_verdicts_at_their_edges(reserved: int, cheaper: bool, verdict: Verdict) -> None:
    room = Room(total_bytes=20, other_bytes=10, sleeping_bytes=5)
    made = plan(reserved, 1, room, cheaper_fits=cheaper)
    assert made.verdict is verdict
    assert made.fits is (verdict in (Verdict.FITS, Verdict.FITS_ALONE))


def test_a_plan_is_told_as_the_contract_has_it() -> None:
    message = plan(9, 1, Room(20, 10, 0, 12, 1), coefficients="calibrated").message()
    assert message.verdict == gpu_pb2.PLAN_VERDICT_REFUSED
    assert message.profile == gpu_pb2.MEMORY_PROFILE_BALANCED
    assert [phase.phase for phase in message.phases] == ["load", "denoise"]
    assert (message.peak_reserved_bytes, message.context_bytes) == (9, 1)
    assert (message.available_bytes, message.other_processes_bytes, message.budget_bytes) == (9, 10, 12)
    assert message.duration.ToTimedelta().total_seconds() == 3
    assert message.coefficients == "calibrated"
    without = Plan(Profile.AUTO, (Phase("load", 1, 0, 2),), 0, Room(20)).message()
    assert not without.HasField("duration")
    assert not without.phases[0].HasField("duration")


def test_every_profile_has_its_word_and_its_message() -> None:
    for profile in Profile:
        assert Profile.of(profile.message, Profile.SAVER) is profile
    assert Profile.of(gpu_pb2.MEMORY_PROFILE_UNSPECIFIED, Profile.SAVER) is Profile.SAVER


def test_a_refusal_tells_bytes_and_what_would_fit() -> None:
    refused = PlanRefused.of(
        plan(30, 1, Room(20, 5, 0, 16)),
        what="a clip of 64x64 px",
        suggestion="64x32 px would fit",
        fields={"suggested_height_px": "32"},
    )
    assert refused.reason == "PLAN_REFUSED"
    assert refused.metadata == {"needed_bytes": "31", "free_bytes": "15", "suggested_height_px": "32"}
    for word in ("31", "15", "budget of 16", "device of 20", "other processes hold 5", "64x32 px would fit"):
        assert word in refused.message
