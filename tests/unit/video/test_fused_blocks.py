"""Fused blocks run where they were tried, are not used where they fail or err, and leave nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_video import svd_pipeline

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import Cancelled
from halfreel_video import fused_plain
from halfreel_video.fused_blocks import FusedBlocks
from halfreel_video.lean_unet import make_lean
from halfreel_video.pulse import Pulse
from halfreel_video.svd import decode


@pytest.fixture
def pair() -> tuple[Any, Any]:
    """A pipeline as it is, and one of the same weights."""
    plain = svd_pipeline(3)
    for part in (plain.unet, plain.vae):
        part.eval().requires_grad_(False)
    parts = copy.deepcopy(plain.unet), copy.deepcopy(plain.vae)
    make_lean(plain.unet)
    return plain, type(plain)(**{**plain.components, "unet": parts[0], "vae": parts[1]})


def noise(unet: Any, halves: int = 2, frame_count: int = 5, height: int = 8, width: int = 8) -> torch.Tensor:
    draws = torch.Generator().manual_seed(halves + frame_count + height)
    with torch.no_grad():
        (result,) = unet(
            torch.randn(halves, frame_count, 8, height, width, generator=draws),
            torch.tensor(0.7),
            encoder_hidden_states=torch.randn(halves, 1, 32, generator=draws),
            added_time_ids=torch.rand(halves, 3, generator=draws) * 100,
            return_dict=False,
        )
    return result


def test_what_was_tried_gives_the_same_numbers_and_leaves_nothing_behind(pair: tuple[Any, Any]) -> None:
    plain, fast = pair
    blocks = FusedBlocks(fast, lambda: fused_plain)
    expected, wide = noise(plain.unet), noise(plain.unet, 2, 4, 9, 7)
    pieces = 0
    while blocks.is_pending:
        assert not blocks.use(True)
        assert torch.equal(noise(fast.unet), expected)
        blocks.check_next()
        pieces += 1
    assert (blocks.ready, blocks.problem, pieces) == (True, "", 3 + 1)
    assert torch.equal(noise(fast.unet), expected)
    assert blocks.use(True)
    given = noise(fast.unet)
    assert not torch.equal(given, expected)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(noise(fast.unet, 2, 4, 9, 7), wide, rtol=1e-4, atol=1e-5)
    for parameter in fast.unet.parameters():  # weights may move between two blocks
        parameter.data = parameter.data.clone()
    assert torch.equal(noise(fast.unet), given)
    assert not blocks.use(False)
    assert torch.equal(noise(fast.unet), expected)


def test_the_same_frames(pair: tuple[Any, Any]) -> None:
    plain, fast = pair
    blocks = FusedBlocks(fast, lambda: fused_plain)
    assert blocks.check_all()
    latents = torch.randn(1, 5, 4, 12, 8, generator=torch.Generator().manual_seed(1))
    expected = list(decode(plain, latents, 4))  # four frames, and one alone
    assert blocks.use(True)
    for one, other in zip(decode(fast, latents, 4), expected, strict=True):
        assert abs(one.astype(int) - other).max() <= 1


def test_a_job_stops_within_a_pass(pair: tuple[Any, Any]) -> None:
    _, fast = pair
    blocks = FusedBlocks(fast, lambda: fused_plain)
    assert blocks.check_all()
    pulse, token, seen = Pulse(fast), CancelToken(), []

    def cancel_here(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 3:
            token.cancel()

    for block in (*fast.unet.mid_block.resnets, *fast.unet.up_blocks[0].resnets):
        block.register_forward_pre_hook(cancel_here)
    blocks.use(True)
    with pulse.of(token), pytest.raises(Cancelled):
        noise(fast.unet)
    assert len(seen) == 3
    noise(fast.unet)  # nothing is left of it


@pytest.mark.parametrize(
    ("gated", "told"),
    [
        (lambda both: fused_plain.gated(both) * 1.5, "ArithmeticError: fused blocks are off by"),
        (lambda both: 1 / 0, "ZeroDivisionError"),
        (lambda both: fused_plain.gated(both) * float("nan"), "ArithmeticError: fused blocks are off by nan"),
    ],
    ids=["other numbers", "no numbers", "not a number"],
)
def test_kernels_that_fail_or_err_are_not_used(pair: tuple[Any, Any], gated: Callable[..., Any], told: str) -> None:
    plain, fast = pair
    kernels = SimpleNamespace(**{**vars(fused_plain), "gated": gated})
    blocks = FusedBlocks(fast, lambda: kernels)
    assert not blocks.check_all()
    assert told in blocks.problem
    assert not blocks.use(True)
    assert torch.equal(noise(fast.unet), noise(plain.unet))
    blocks.check_next()  # nothing is left to do


def test_a_model_of_another_make_and_a_device_without_kernels_run_as_they_are(pair: tuple[Any, Any]) -> None:
    plain, fast = pair
    expected = noise(plain.unet)

    def missing() -> Any:
        raise ImportError("no compiler here")

    without = FusedBlocks(fast, missing)
    assert not without.check_all()
    assert without.problem == "ImportError: no compiler here"
    fast.unet.mid_block.resnets[0].spatial_res_block.output_scale_factor = 2.0
    other = FusedBlocks(fast, lambda: fused_plain)  # a server must start with it all the same
    assert not other.check_all()
    assert "another make" in other.problem
    fast.unet.mid_block.resnets[0].spatial_res_block.output_scale_factor = 1.0
    assert torch.equal(noise(fast.unet), expected)
