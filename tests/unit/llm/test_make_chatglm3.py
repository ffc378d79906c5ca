"""The script that makes the model of the GPU's test: its files load, at a small size, by the server's own path."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from halfreel_llm.checkpoint import find_checkpoint
from halfreel_llm.generation import Finished, TextModel, TextRequest
from halfreel_llm.messages import Message
from halfreel_llm.network import Network
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.tokenizer import open_tokenizer
from halfreel_llm.weights import load_model
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import CPU
from halfreel_runtime.memory import MemoryMonitor

SCRIPT = Path(__file__).parents[2] / "gpu" / "make_chatglm3.py"


def test_what_it_makes_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), "--tiny", "--device", "cpu"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    checkpoint = find_checkpoint(str(tmp_path))
    assert len(checkpoint.weight_files) == 4
    tokenizer = open_tokenizer(checkpoint)
    network = Network(load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float16), 64)
    model = TextModel(network, tokenizer, MemoryMonitor(CPU), slot_count=1, context_token_count=64)
    prompt = tuple(tokenizer.encode_chat([Message("user", "a red circle")]))
    *_, finished = model.generate(
        TextRequest("", prompt, 8, SamplingSettings(1, top_p=1, top_k=0, seed=0)), CancelToken()
    )
    assert isinstance(finished, Finished)
