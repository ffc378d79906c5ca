"""A phase is held to its plan by the allocator's own limit, and let go where the plan was too low."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from halfreel_video.phase_cap import PhaseCap

TOTAL = 1000


class Allocator:
    """The limit of a card's allocator, as torch has it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, allowed: float = 1.0) -> None:
        self.allowed = allowed
        self.emptied = 0
        properties = type("Properties", (), {"total_memory": TOTAL})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: self.allowed)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self._set)
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty)

    def take(self, size: int) -> int:
        if size > self.allowed * TOTAL:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return size

    def _set(self, fraction: float, device: Any) -> None:
        self.allowed = fraction

    def _empty(self) -> None:
        self.emptied += 1


def test_a_cap_lasts_as_long_as_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator, cap = Allocator(monkeypatch, 0.8), PhaseCap(torch.device("cuda:0"))
    with cap.at(500):
        assert allocator.allowed == 0.5
    assert allocator.allowed == 0.8
    with pytest.raises(ValueError, match="failed"), cap.at(500):
        raise ValueError("failed")
    assert allocator.allowed == 0.8
    assert not cap.lift()


@pytest.mark.parametrize("size", [0, 800, 900])
def test_a_budget_is_never_widened(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    allocator, cap = Allocator(monkeypatch, 0.8), PhaseCap(torch.device("cuda:0"))
    with cap.at(size):
        assert allocator.allowed == 0.8
        assert not cap.lift()


def test_work_that_a_plan_was_too_low_for_is_done_without_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator, cap = Allocator(monkeypatch, 0.8), PhaseCap(torch.device("cuda:0"))
    with cap.at(500):
        assert cap.run(lambda: allocator.take(400)) == 400
        assert (allocator.allowed, allocator.emptied) == (0.5, 0)
        assert cap.run(lambda: allocator.take(600)) == 600
        assert (allocator.allowed, allocator.emptied) == (0.8, 1)
        with pytest.raises(torch.OutOfMemoryError):
            cap.run(lambda: allocator.take(900))


def test_nothing_is_capped_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator, cap = Allocator(monkeypatch), PhaseCap(torch.device("cpu"))
    with cap.at(500):
        assert allocator.allowed == 1.0
    with pytest.raises(torch.OutOfMemoryError):
        cap.run(lambda: allocator.take(2000))
