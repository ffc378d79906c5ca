"""A short form of benchmarks/memory_stress.py: mixed requests on small simulated cards end no server, leave no byte."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as the script sets it, and taken back with it
    spec = importlib.util.spec_from_file_location("memory_stress", BENCHMARKS / "memory_stress.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_mixed_requests_on_a_card_of_12_gib(benchmark: ModuleType) -> None:
    found = await benchmark.stress(benchmark.small_model(), 12, 24)
    assert found["done"] + found.get("refused", 0) == found["requests"] == 24
    assert (found["oom_unrecovered"], found["deaths"]) == (0, 0)
    assert (found["leaked_bytes"], found["left_asleep_bytes"]) == (0, 0)
    assert found["wakes"] > 2  # they took turns
    assert found["done"] > 12
