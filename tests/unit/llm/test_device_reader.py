"""Tensors read piece by piece are those that were saved; and weights in 8 bits stay close to what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from halfreel_llm import device_reader
from halfreel_llm import weight as weight_module
from halfreel_llm.device_reader import read_tensors
from halfreel_llm.weight import Weight, join

CPU = torch.device("cpu")


def test_every_tensor_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_reader, "_PIECE_BYTES", 1000)  # so that a tensor takes several pieces
    saved = {
        "half": torch.randn(70, 33).half(),
        "wide": torch.randn(500),
        "brain": torch.randn(3, 4, 5).bfloat16(),
        "one": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }
    save_file(saved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = dict(read_tensors(tmp_path / "model.safetensors", CPU))
    assert found.keys() == saved.keys()
    for name, tensor in saved.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_other_than_floating_point_numbers_are_refused(tmp_path: Path) -> None:
    save_file({"ids": torch.arange(5)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'ids' is I64"):
        list(read_tensors(tmp_path / "model.safetensors", CPU))


def test_a_file_that_ends_too_soon_is_told(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"wide": torch.randn(500)}, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OSError, match="ends before"):
        list(read_tensors(file, CPU))


def test_weights_in_8_bits_are_close_and_small() -> None:
    torch.manual_seed(0)
    values, rows = torch.randn(96, 160) * torch.rand(96, 1), torch.randn(5, 160)
    exact, weight = Weight(values, torch.randn(96)), Weight(values.clone(), torch.zeros(96))
    exact.bias = weight.bias
    weight.quantise()
    assert weight.values.dtype == torch.int8
    assert weight.byte_count < 0.3 * exact.byte_count  # of FP32
    assert (weight(rows) - exact(rows)).norm() / exact(rows).norm() < 0.02
    assert weight.scales is not None
    assert ((weight.values * weight.scales[:, None] - values).abs() <= weight.scales[:, None] / 2 + 1e-6).all()


def test_a_matrix_in_slices_is_the_same_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    values, rows = torch.randn(96, 160), torch.randn(2, 5, 160)
    whole = Weight(values, torch.randn(96))
    whole.quantise()
    expected = whole(rows)
    monkeypatch.setattr(weight_module, "_SLICE_NUMBERS", 160 * 25)  # the last slice is shorter
    sliced = Weight(values, whole.bias)
    sliced.quantise(CPU)
    assert whole.scales is not None
    assert sliced.scales is not None
    assert torch.equal(sliced.values, whole.values)
    assert torch.equal(sliced.scales, whole.scales)
    assert torch.allclose(sliced(rows), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_embedding_gives_rows_in_the_models_arithmetic(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values, indices = torch.randn(96, 160, dtype=dtype), torch.tensor([3, 95, 3])
    embedding = Weight(values, None)
    assert torch.equal(embedding.rows(indices), values[indices])
    embedding.quantise()
    found = embedding.rows(indices)
    assert found.dtype == dtype
    assert (found - values[indices]).abs().max() <= values[indices].abs().max() / 127


def test_joined_matrices_give_what_each_gave() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, size).requires_grad_(False) for size in (64, 16, 16)]
    rows = torch.randn(7, 32)
    wanted = torch.cat([layer(rows) for layer in layers], dim=1)
    assert torch.allclose(join(*layers)(rows), wanted, atol=1e-6)
