"""The fastest attention kernel of each class of shape is chosen, kept, and gives the numbers of any other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_video import svd_pipeline
from torch.nn.attention import _cur_sdpa_kernel_backends

from halfreel_video.attention_kernels import ChosenAttention, fastest_kernels, kept, kept_kernels, kernel_seconds
from halfreel_video.lean_unet import make_lean

CPU = torch.device("cpu")
SMALL = {"spatial": (2, 2, 96, 16), "temporal": (12, 2, 5, 16)}


def clock(**seconds: float) -> Callable[[Callable[[], object]], float]:
    """Says what each kernel took, by which are allowed at the moment."""

    def timed(work: Callable[[], object]) -> float:
        work()
        allowed = [each.name.partition("_")[0].lower() for each in _cur_sdpa_kernel_backends()]
        return seconds[allowed[0] if len(allowed) == 1 else "own"]

    return timed


def test_kernels_that_take_a_shape_are_timed() -> None:
    few = kernel_seconds(CPU, torch.float32, SMALL["temporal"])
    assert few.keys() == {"own", "flash", "math"}  # on a CPU there are no others
    assert all(seconds > 0 for seconds in few.values())
    assert kernel_seconds(CPU, torch.float32, SMALL["spatial"]).keys() == {"own", "flash"}


def test_a_kernel_is_chosen_where_it_is_clearly_faster() -> None:
    def chosen(**seconds: float) -> dict[str, str]:
        return fastest_kernels(CPU, torch.float32, shapes=SMALL, clock=clock(**seconds))

    assert chosen(own=1, flash=1, math=0.5) == {"temporal": "math"}
    assert chosen(own=1, flash=0.5, math=0.6) == {"spatial": "flash", "temporal": "flash"}
    assert chosen(own=1, flash=0.97, math=0.97) == {}


def test_a_choice_is_kept(tmp_path: Path) -> None:
    path, made = tmp_path / "attention.json", []

    def choose() -> dict[str, str]:
        made.append(1)
        return {"temporal": "math"}

    assert kept(path, choose) == kept(path, choose) == {"temporal": "math"}
    assert len(made) == 1
    for damaged in ("{", "[]", json.dumps({"temporal": "warp"}), json.dumps({"weekly": "math"})):
        path.write_text(damaged)
        assert kept(path, choose) == {"temporal": "math"}
    assert len(made) == 5
    assert kept(tmp_path / "missing" / "attention.json", choose) == {"temporal": "math"}

    def crowded() -> dict[str, str]:
        raise torch.OutOfMemoryError

    assert kept(tmp_path / "other.json", crowded) == {}
    assert not (tmp_path / "other.json").exists()
    assert kept_kernels(CPU, torch.float16) == {}


def test_the_same_numbers_by_chosen_kernels() -> None:
    unet = svd_pipeline(3).unet.eval().requires_grad_(False)
    chosen = copy.deepcopy(unet)
    for each in (unet, chosen):
        make_lean(each)
    chosen.set_attn_processor(ChosenAttention({"temporal": "math"}))
    draws = torch.Generator().manual_seed(1)
    given: dict[str, Any] = {
        "hidden_states": torch.randn(2 * 3, 32, 10, 12, generator=draws),
        "encoder_hidden_states": torch.randn(2, 1, 32, generator=draws),
        "image_only_indicator": torch.zeros(2, 3),
    }
    transformer, other = chosen.down_blocks[0].attentions[0], unet.down_blocks[0].attentions[0]
    with torch.no_grad():
        (expected,), (result,) = other(**given), transformer(**given)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
