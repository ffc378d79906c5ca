"""How many slots there are, and that the one which no reply gets is counted wherever memory is foretold."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plain_kernels
import pytest
import tiny_llm
import torch

import halfreel_llm
from halfreel.gpu.v1 import gpu_pb2
from halfreel_llm import doctor, runners, served_model
from halfreel_llm.generation import TextModel
from halfreel_llm.graph_runner import GraphRunner
from halfreel_llm.kv_cache import bytes_per_token
from halfreel_llm.settings import LlmSettings
from halfreel_runtime import device as runtime_device
from halfreel_runtime.device import CPU
from halfreel_runtime.memory_limit import CONTEXT_BYTES, MemoryLimit
from halfreel_runtime.testing.source import simulated_device

CONTEXT = tiny_llm.CONTEXT_TOKEN_COUNT
GPU = simulated_device()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU: the runner of graphs is chosen, its kernels in PyTorch's words, nothing captured."""
    monkeypatch.setattr(runners, "_no_graphs", lambda network: "")
    monkeypatch.setitem(sys.modules, "halfreel_llm.kernels", plain_kernels)
    monkeypatch.setattr(halfreel_llm, "kernels", plain_kernels, raising=False)
    card = SimpleNamespace(major=8, minor=0, multi_processor_count=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(GraphRunner, "capture", lambda self: None)
    return


def room_for(slot_bytes: int, held_bytes: int) -> tuple[Any, MemoryLimit]:
    """A monitor and a limit that leave exactly so many bytes for slots."""
    report = gpu_pb2.MemoryReport(devices=[gpu_pb2.DeviceMemory(reserved_bytes=held_bytes)])
    total = slot_bytes + held_bytes + CONTEXT_BYTES + served_model._WORKSPACE_BYTES
    return SimpleNamespace(report=lambda: report), MemoryLimit(GPU, total, 0, 0)


@pytest.mark.parametrize(("whole_slots", "replies"), [(2, 1), (5, 4), (9, 8), (40, 8)])
def test_what_is_allocated_is_what_there_was_room_for(
    text_model: TextModel, graphs: None, whole_slots: int, replies: int
) -> None:
    network = text_model.network
    slot_bytes = CONTEXT * bytes_per_token(network.shape, network.dtype)
    memory, limit = room_for(whole_slots * slot_bytes, held_bytes=12345)
    count = served_model._fitting_slots(network, CONTEXT, memory, limit)
    allowed = torch.ones(network.shape.vocabulary_size, dtype=torch.bool)
    runner, cache = runners.make_runner(network, allowed, slot_count=count, context_token_count=CONTEXT)
    assert count == runner.slot_count == replies
    assert cache.byte_count == (count + 1) * slot_bytes <= whole_slots * slot_bytes


@pytest.mark.parametrize(("missing_bytes", "piece_tokens"), [(0, 1024), (1, 256)])
def test_with_little_room_beside_the_slots_prompts_are_read_in_small_pieces(
    text_model: TextModel, graphs: None, missing_bytes: int, piece_tokens: int
) -> None:
    network = text_model.network
    slot_bytes = CONTEXT * bytes_per_token(network.shape, network.dtype)
    memory, limit = room_for(2 * slot_bytes - missing_bytes, held_bytes=12345)
    small = served_model._left_bytes(network, 1, CONTEXT, memory, limit) < served_model._WORKSPACE_BYTES
    allowed = torch.ones(network.shape.vocabulary_size, dtype=torch.bool)
    runner, _ = runners.make_runner(network, allowed, slot_count=1, context_token_count=CONTEXT, small_pieces=small)
    assert runner.piece_tokens(alone=True, prompts=1) == piece_tokens
    assert runner.piece_tokens(alone=False, prompts=16) == min(512, piece_tokens)


def test_without_graphs_all_slots_are_for_replies(text_model: TextModel) -> None:
    network = text_model.network
    slot_bytes = CONTEXT * bytes_per_token(network.shape, network.dtype)
    memory, limit = room_for(3 * slot_bytes, held_bytes=0)
    assert served_model._fitting_slots(network, CONTEXT, memory, limit) == 3
    assert text_model.cache.byte_count == text_model.slot_count * slot_bytes


def test_the_guess_before_loading_counts_the_spare_slot(glm_folder: Path, text_model: TextModel) -> None:
    settings = LlmSettings(model=str(glm_folder), slot_count=5)
    slot_bytes = CONTEXT * bytes_per_token(text_model.network.shape, torch.float16)
    assert served_model.guessed_bytes(settings, GPU) - served_model.guessed_bytes(settings, CPU) == slot_bytes
    more = LlmSettings(model=str(glm_folder), slot_count=6)
    assert served_model.guessed_bytes(more, GPU) - served_model.guessed_bytes(settings, GPU) == slot_bytes


def test_the_doctor_counts_the_spare_slot(glm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LlmSettings(model=str(glm_folder), device="cpu", precision="fp32")
    on_cpu = doctor.diagnose(settings)
    card = SimpleNamespace(kind="cuda", torch_name="cuda:0", name="simulated card")
    monkeypatch.setattr(runtime_device, "find_device", lambda spec: card)
    report = gpu_pb2.MemoryReport(devices=[gpu_pb2.DeviceMemory(device_free_bytes=2**40)])
    monkeypatch.setattr("halfreel_runtime.memory.MemoryMonitor", lambda device: SimpleNamespace(report=lambda: report))
    assert doctor.diagnose(settings).cache_bytes == 2 * on_cpu.cache_bytes
