"""The language model's half of `halfreel bench precision`: its figures against transformers' own network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from halfreel_llm import bench
from halfreel_llm.checkpoint import Checkpoint
from halfreel_llm.network import Network
from halfreel_llm.weights import load_model

TOKEN_COUNT = 6


@pytest.fixture(scope="module")
def rows(glm_folder: Path) -> dict[str, dict[str, Any]]:
    settings = bench.LlmSettings(model=str(glm_folder), device="cpu")
    return {row["precision"]: row for row in bench.bench(settings, TOKEN_COUNT)}


def test_every_precision_has_a_row_and_fp32_is_itself(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == ["fp32", "fp16", "bf16", "int8"]
    assert (rows["fp32"]["token_agreement"], rows["fp32"]["nan_count"]) == (1.0, 0)
    assert rows["fp32"]["kl_nats"] < 1e-9
    for row in rows.values():
        assert row["compared_token_count"] == len(bench.PROMPTS) * TOKEN_COUNT
        assert 0 < row["token_count"] <= row["compared_token_count"]
        assert set(row["peak_reserved_bytes"]) == {"load", "prefill", "decode"}
        assert row["seconds"] > 0 < row["load_s"]
    assert rows["fp16"]["weight_bytes"] * 2 == rows["fp32"]["weight_bytes"]
    assert rows["int8"]["weight_bytes"] < 0.6 * rows["fp32"]["weight_bytes"]
    assert 0 < rows["fp16"]["kl_nats"] < rows["bf16"]["kl_nats"] < 0.01
    assert rows["fp16"]["token_agreement"] >= 0.9


def network_of(checkpoint: Checkpoint) -> Network:
    model = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    return Network(model, 64)


def test_a_reply_is_that_of_transformers_and_its_likeness_is_arithmetic(checkpoint: Checkpoint) -> None:
    theirs: Any = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    prompt, never = (5, 9, 300), [7, 8]
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, suppress_tokens=never, eos_token_id=None
    )
    network = network_of(checkpoint)
    allowed = torch.ones(network.shape.vocabulary_size, dtype=torch.bool)
    allowed[never] = False
    reply = bench._write(network, prompt, 8, allowed, 64)
    assert list(reply.token_ids) == expected[0, len(prompt) :].tolist()
    same = bench._compare(network, reply, 64)
    assert (same.equal_count, same.nan_count) == (8, 0)
    assert same.divergence < 1e-9
    # Twice as sure of everything: the same tokens, and a divergence that can be worked out.
    network.final_norm *= 2
    sure = bench._compare(network, reply, 64)
    p, q = reply.logits.softmax(-1), (2 * reply.logits).softmax(-1)
    assert sure.equal_count == 8
    assert sure.divergence == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)


def test_numbers_that_are_not_finite_are_counted_and_left_out(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, logits = network_of(checkpoint), bench._logits
    reply = bench._write(network, (5, 9, 300), 4, torch.ones(network.shape.vocabulary_size, dtype=torch.bool), 64)

    def broken(*given: Any) -> torch.Tensor:
        found: torch.Tensor = logits(*given).clone()
        found[-1, 3], found[-3] = torch.inf, torch.nan
        return found

    monkeypatch.setattr(bench, "_logits", broken)
    compared = bench._compare(network, reply, 64)
    assert (compared.nan_count, compared.equal_count) == (2, 2)
    assert 0 <= compared.divergence < 1e-9


def test_flags_out_of_range_end_with_one_line(capsys: pytest.CaptureFixture[str], glm_folder: Path) -> None:
    for tokens, text in (("0", "between 1 and 1024"), ("1024", "the model's context")):
        assert (
            bench.main(["--tokens", tokens, "--model", str(glm_folder), "--device", "cpu", "--thread-count", "1"]) == 2
        )
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"tokens is {tokens}; ")
        assert text in said.err


def test_rows_are_printed_as_they_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, glm_folder: Path
) -> None:
    monkeypatch.setattr(bench, "PRECISIONS", ("fp32",))
    assert bench.main(["--tokens", "2", "--model", str(glm_folder), "--device", "cpu", "--thread-count", "1"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["part"] == "text"
