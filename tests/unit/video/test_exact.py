"""The lean UNet gives diffusers' numbers for less work; steps that run ahead of the host give the same clip."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_video import svd_pipeline
from torch.utils.flop_counter import FlopCounterMode

from halfreel_video.lean_unet import Kept, make_lean
from halfreel_video.svd import Denoising, NanDetected, encode


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """diffusers' own UNet, and a lean one of the same weights."""
    unet = svd_pipeline(3).unet
    lean = copy.deepcopy(unet)
    make_lean(lean)
    make_lean(lean)  # a second time changes nothing
    return unet, lean


def inputs(halves: int, frame_count: int, height: int, width: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(halves + frame_count + height)
    return {
        "sample": torch.randn(halves, frame_count, 8, height, width, generator=draws),
        "timestep": torch.tensor(0.7),
        "encoder_hidden_states": torch.randn(halves, 1, 32, generator=draws),
        "added_time_ids": torch.rand(halves, 3, generator=draws) * 100,
    }


@pytest.mark.parametrize(
    "shape", [(1, 5, 8, 8), (2, 5, 8, 8), (2, 3, 12, 20), (2, 2, 9, 11)], ids=["half", "both", "wide", "odd"]
)
@torch.no_grad()
def test_the_same_numbers_as_diffusers_up_to_rounding(pair: tuple[Any, Any], shape: tuple[int, int, int, int]) -> None:
    unet, lean = pair
    given = inputs(*shape)
    expected = unet(**given, return_dict=False)[0]
    kept = Kept()
    first = lean(**given, return_dict=False, kept=kept)[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=2e-6)
    # At a clip's second step everything kept is used, and it is the very same.
    assert torch.equal(lean(**given, return_dict=False, kept=kept)[0], first)
    assert torch.equal(lean(**given, return_dict=False)[0], first)


@torch.no_grad()
def test_what_is_kept_belongs_to_its_clip(pair: tuple[Any, Any]) -> None:
    _, lean = pair
    one, other, kept, others = inputs(1, 3, 8, 8), inputs(2, 3, 8, 8), Kept(), Kept()
    first = lean(**one, kept=kept)[0]
    different = lean(**other, kept=others)[0]
    assert torch.equal(lean(**one, kept=kept)[0], first)
    assert torch.equal(lean(**other, kept=others)[0], different)


@torch.no_grad()
def test_the_dead_work_is_not_done(pair: tuple[Any, Any]) -> None:
    unet, lean = pair
    given, kept = inputs(2, 5, 16, 16), Kept()
    with FlopCounterMode(display=False) as whole:
        unet(**given)
    lean(**given, kept=kept)
    calls: list[str] = []
    hooks = [
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, part in lean.named_modules()
        if ".attn2.to_" in name or name.endswith((".time_pos_embed", "add_embedding"))
    ]
    with FlopCounterMode(display=False) as less:
        lean(**given, kept=kept)
    for hook in hooks:
        hook.remove()
    assert not calls
    # Queries, keys and output of every cross attention, of all tokens.
    assert less.get_total_flops() < 0.97 * whole.get_total_flops()


@torch.no_grad()
def test_a_failed_step_keeps_nothing_of_another_clip(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, lean = pair
    given = inputs(1, 3, 8, 8)
    first = lean(**given)[0]
    with monkeypatch.context() as broken:
        broken.setattr(lean.conv_out, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lean(**inputs(2, 5, 8, 8))
    assert torch.equal(lean(**given)[0], first)


@torch.no_grad()
def test_deep_features_are_reused_only_where_there_are_some(pair: tuple[Any, Any]) -> None:
    _, lean = pair
    given = inputs(2, 3, 8, 8)
    whole = lean(**given)[0]
    kept = Kept(keeps_deep=True)
    assert torch.equal(lean(**given, kept=kept, reuse_deep=True)[0], whole)
    # Of the same step they are the same: reuse is exact where nothing has changed.
    assert torch.equal(lean(**given, kept=kept, reuse_deep=True)[0], whole)
    later = {**given, "sample": given["sample"] + 0.1}
    reused, right = lean(**later, kept=kept, reuse_deep=True)[0], lean(**later)[0]
    assert not torch.equal(reused, right)
    assert (reused - right).std() < (whole - right).std()
    with FlopCounterMode(display=False) as less:
        lean(**later, kept=kept, reuse_deep=True)
    with FlopCounterMode(display=False) as more:
        lean(**later)
    assert less.get_total_flops() < 0.8 * more.get_total_flops()


def test_another_unet_is_not_taken_over(keyframe: Any) -> None:
    with pytest.raises(TypeError, match="UNet2DConditionModel"):
        make_lean(keyframe.unet)


def denoise(svd: Any, picture: Any, clip: Any, ahead_count: int) -> tuple[torch.Tensor, list[int]]:
    """All steps, and how many were over after each call."""
    generator = torch.Generator().manual_seed(clip.seed)
    denoising = Denoising(svd, encode(svd, picture, clip, clip.frame_count, generator), clip, generator)
    denoising.ahead_count = ahead_count
    counts = []
    while denoising.done_count < denoising.step_count:
        shown = denoising.advance()
        assert (shown is None) == (denoising.done_count == (counts[-1] if counts else 0))
        counts.append(denoising.done_count)
    return denoising.latents, counts


def test_steps_that_run_ahead_give_the_same_clip(svd: Any, picture: Any, make_clip: Any) -> None:
    clip = make_clip(step_count=4, guidance_scale=2.0)
    one_by_one, counts = denoise(svd, picture, clip, 0)
    assert counts == [1, 2, 3, 4]
    ahead, counts = denoise(svd, picture, clip, 1)
    assert counts == [0, 1, 2, 3, 4]
    assert torch.equal(one_by_one, ahead)


@pytest.mark.parametrize("ahead_count", [0, 1])
@pytest.mark.parametrize("bad_step", [0, 2, 3])
def test_a_step_without_numbers_is_done_again_and_only_it(
    svd: Any, picture: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch, ahead_count: int, bad_step: int
) -> None:
    clip = make_clip(step_count=4)
    expected, _ = denoise(svd, picture, clip, 0)
    generator = torch.Generator().manual_seed(clip.seed)
    denoising = Denoising(svd, encode(svd, picture, clip, 5, generator), clip, generator)
    denoising.ahead_count = ahead_count
    passes, original, failed = [], svd.unet.forward, []

    def sometimes_nan(*arguments: Any, **named: Any) -> Any:
        passes.append(1)
        (noise,) = original(*arguments, **named)
        return (noise * float("nan") if len(passes) == bad_step + 1 else noise,)

    monkeypatch.setattr(svd.unet, "forward", sometimes_nan)
    while denoising.done_count < 4:
        try:
            denoising.advance()
        except NanDetected as error:
            failed.append(error.metadata["where"])
            assert denoising.done_count == bad_step
    assert failed == [f"denoising step {bad_step + 1}"]
    assert torch.equal(denoising.latents, expected)
    # The failed step again, and the one that had begun upon it.
    assert len(passes) == 4 + 1 + (ahead_count if bad_step < 3 else 0)


def test_a_step_that_fails_while_another_is_under_way_changes_nothing(
    svd: Any, picture: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(step_count=3)
    expected, _ = denoise(svd, picture, clip, 0)
    generator = torch.Generator().manual_seed(clip.seed)
    denoising = Denoising(svd, encode(svd, picture, clip, 5, generator), clip, generator)
    denoising.ahead_count = 1
    denoising.advance()
    with monkeypatch.context() as starved:
        starved.setattr(svd.unet, "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            denoising.advance()
    while denoising.done_count < 3:
        denoising.advance()
    assert torch.equal(denoising.latents, expected)
