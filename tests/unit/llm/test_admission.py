"""Which replies are let in by their memory, and how that is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from halfreel.gpu.v1 import gpu_pb2
from halfreel_llm.admission import Admission
from halfreel_llm.counting import count_admitted, refusals_counted
from halfreel_llm.generation import TextModel
from halfreel_llm.planning import Lengths, Planner
from halfreel_runtime.device import CPU
from halfreel_runtime.errors import InvalidArgument, QueueFull
from halfreel_runtime.instruments import VERDICTS, Instruments
from halfreel_runtime.memory_limit import MemoryLimit
from halfreel_runtime.plan import PlanRefused, Profile, Verdict
from halfreel_runtime.testing.source import simulated_device

WARM = 50 * 2**20
TOTAL = 2**30
LENGTHS = Lengths(prompt_tokens=30, output_tokens=100, request_count=1)


def admission(
    model: TextModel, *, budget: int = 0, others: int = 0, sleeping: int = 0, on_gpu: bool = False
) -> Admission:
    """Of a device of 1 GiB on which others hold so much, of which so much sleeps when asked to."""
    planner = Planner(
        shape=model.network.shape,
        number_bytes=4,
        intermediate_size=128,
        warm_bytes=WARM,
        cache_bytes_per_token=model.cache_bytes_per_token,
        cache_is_warm=on_gpu,
        slot_count=4,
        piece_tokens=64,
        limit=MemoryLimit(simulated_device() if on_gpu else CPU, TOTAL, budget, 0),
    )
    device = gpu_pb2.DeviceMemory(other_processes_bytes=others, context_bytes=1)
    memory: Any = SimpleNamespace(report=lambda: gpu_pb2.MemoryReport(devices=[device]))
    neighbours = [SimpleNamespace(held_bytes=sleeping)] if sleeping else []
    sleeper: Any = SimpleNamespace(neighbours=lambda: neighbours)
    return Admission(planner, memory, Profile.AUTO, sleeper)


def counted(instruments: Instruments) -> dict[str, float]:
    value = instruments.registry.get_sample_value
    return {
        verdict: value("halfreel_admissions_total", {"service": "llm", "verdict": verdict}) or 0.0
        for verdict in VERDICTS
    }


def test_a_reply_is_let_in_by_the_room_there_is(text_model: TextModel) -> None:
    free = TOTAL - WARM - 20 * 2**20
    assert admission(text_model, others=free).admit(LENGTHS) is Verdict.FITS
    crowded = admission(text_model, others=TOTAL, sleeping=TOTAL)
    assert crowded.admit(LENGTHS) is Verdict.FITS_ALONE
    with pytest.raises(PlanRefused) as caught:
        admission(text_model, others=TOTAL, sleeping=WARM).admit(LENGTHS)
    assert caught.value.metadata["free_bytes"] == "0"
    assert "a reply of 100 tokens after a prompt of 30 needs" in caught.value.message
    assert "suggested_max_output_token_count" not in caught.value.metadata


def test_what_is_there_already_is_refused_to_nobody(text_model: TextModel) -> None:
    """On a GPU the slots are the server's own, however full a neighbour at its turn or a stranger has the device."""
    for others, sleeping in ((0, 0), (TOTAL, 0), (TOTAL, WARM)):
        assert admission(text_model, others=others, sleeping=sleeping, on_gpu=True).admit(LENGTHS) is Verdict.FITS
    assert admission(text_model, budget=WARM, on_gpu=True).admit(LENGTHS) is Verdict.FITS


def test_a_reply_on_a_gpu_is_predicted_to_take_what_its_plan_says(text_model: TextModel) -> None:
    plan, _ = admission(text_model, on_gpu=True).plan(LENGTHS)
    predicted = admission(text_model, on_gpu=True)._planner.predicted_bytes(LENGTHS)
    assert predicted == plan.predicted_bytes()
    assert all(WARM < each < 2 * WARM for each in predicted.values())
    assert admission(text_model)._planner.predicted_bytes(LENGTHS) == {}  # a CPU has no allocator to predict


def test_what_is_suggested_fits_and_one_token_more_does_not(text_model: TextModel) -> None:
    whole, _ = admission(text_model).plan(LENGTHS)
    budget = whole.needed_bytes - 40 * text_model.cache_bytes_per_token - 1
    tight = admission(text_model, budget=budget)
    with pytest.raises(PlanRefused) as caught:
        tight.admit(LENGTHS)
    output = int(caught.value.metadata["suggested_max_output_token_count"])
    assert output == 59
    assert f"max_output_token_count {output} would fit" in caught.value.message
    assert tight.admit(Lengths(30, output, 1)) is Verdict.FITS
    with pytest.raises(PlanRefused):
        tight.admit(Lengths(30, output + 1, 1))


def test_verdicts_are_counted_and_other_refusals_are_none() -> None:
    instruments = Instruments("llm")
    for verdict in (Verdict.FITS, Verdict.FITS, Verdict.FITS_ALONE):
        count_admitted(instruments, verdict)
    too_long = InvalidArgument("too long", reason="PROMPT_TOO_LONG")
    for error in (PlanRefused("no room"), too_long, InvalidArgument("bad field"), QueueFull("16 wait")):
        with pytest.raises(type(error)), refusals_counted(instruments):
            raise error
    assert counted(instruments) == {"fits": 2, "fits_alone": 1, "cheaper_fits": 0, "refused": 2}
