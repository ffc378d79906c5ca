"""Trades of quality for time: off unless named, less work, near the exact clip, and told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.checks import Checks
from halfreel_runtime.errors import Cancelled, InvalidArgument
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video import job as job_module
from halfreel_video.architecture import Architecture
from halfreel_video.coefficients import shipped, shipped_architecture
from halfreel_video.estimate import Estimate, Shape
from halfreel_video.events import StepDone
from halfreel_video.job import ClipJob
from halfreel_video.levers import Levers
from halfreel_video.svd import Denoising, decode, encode
from halfreel_video.trades import PARTIAL_GUIDANCE, REUSE_FEATURES, TRADES, check_trades


class Counted:
    """A clip's passes of the UNet: guidance halves in each, and whether the deep blocks were left out."""

    def __init__(self, svd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[int, bool]] = []
        whole, lean = svd.unet.forward, svd.unet.mid_block.forward
        deep: list[int] = []
        monkeypatch.setattr(svd.unet.mid_block, "forward", lambda *a, **n: (deep.append(1), lean(*a, **n))[1])

        def forward(sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            before = len(deep)
            result = whole(sample, *arguments, **named)
            self.passes.append((len(sample), len(deep) == before))
            return result

        monkeypatch.setattr(svd.unet, "forward", forward)


def latents(svd: Any, picture: Any, clip: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(clip.seed)
    denoising = Denoising(svd, encode(svd, picture, clip, clip.frame_count, generator), clip, generator)
    while denoising.done_count < denoising.step_count:
        denoising.advance()
    return denoising.latents


def test_guidance_in_the_middle_half_of_the_steps(
    svd: Any, picture: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(svd, monkeypatch)
    latents(svd, picture, make_clip(step_count=8, guidance_scale=3.0, trades=(PARTIAL_GUIDANCE.name,)))
    assert counted.passes == [(1, False)] * 2 + [(2, False)] * 4 + [(1, False)] * 2


def test_few_steps_are_all_guided(svd: Any, picture: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(svd, monkeypatch)
    for step_count in (1, 3):
        latents(svd, picture, make_clip(step_count=step_count, guidance_scale=3.0, trades=(PARTIAL_GUIDANCE.name,)))
    assert counted.passes == [(2, False)] * 4


@pytest.mark.parametrize("split", [False, True])
def test_the_deep_blocks_at_every_other_step(
    svd: Any, picture: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch, split: bool
) -> None:
    counted = Counted(svd, monkeypatch)
    trades = (REUSE_FEATURES.name,)
    latents(svd, picture, make_clip(step_count=4, guidance_scale=3.0, trades=trades, split_guidance=split))
    halves, count = (1, 2) if split else (2, 1)
    assert counted.passes == ([(halves, False)] * count + [(halves, True)] * count) * 2


def test_both_at_once_reuse_only_what_the_step_before_gave(
    svd: Any, picture: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(svd, monkeypatch)
    latents(svd, picture, make_clip(step_count=6, guidance_scale=3.0, trades=TRADES))
    # At the last step one half alone has deep features only of the first step, so that it runs whole.
    assert counted.passes == [(1, False), (1, True), (2, False), (2, True), (2, False), (1, False)]


@pytest.mark.parametrize("trade", TRADES)
def test_a_trade_changes_the_clip_a_little_and_repeats_itself(
    svd: Any, picture: Any, make_clip: Any, trade: str
) -> None:
    def frames(**changes: Any) -> np.ndarray:
        clip = make_clip(step_count=6, guidance_scale=2.0, **changes)
        return np.concatenate(list(decode(svd, latents(svd, picture, clip), 8))).astype(int)

    exact, traded = frames(), frames(trades=(trade,))
    assert not np.array_equal(exact, traded)
    assert np.array_equal(traded, frames(trades=(trade,)))
    assert np.array_equal(exact, frames())
    other = frames(seed=77)
    assert np.abs(exact - traded).mean() < np.abs(exact - other).mean()


def test_without_guidance_there_is_none_to_leave_out(svd: Any, picture: Any, make_clip: Any) -> None:
    clip = make_clip(step_count=4)
    partial = make_clip(step_count=4, trades=(PARTIAL_GUIDANCE.name,))
    assert torch.equal(latents(svd, picture, clip), latents(svd, picture, partial))


@pytest.mark.parametrize(
    ("trades", "said"),
    [(["faster"], "partial_guidance, reuse_features"), ([TRADES[0]] * 2, "twice"), (["x"] * 3, "has 3 names")],
)
def test_what_is_no_trade_is_refused(trades: list[str], said: str) -> None:
    checks = Checks()
    check_trades(trades, checks)
    with pytest.raises(InvalidArgument, match=said) as caught:
        checks.done()
    assert {violation.field for violation in caught.value.violations} == {"trades"}


def test_what_is_kept_for_another_step_is_planned() -> None:
    coefficients, shape = shipped("float16"), Shape(1024, 576, 25, 1, 25, True, False)
    estimate = Estimate(Architecture.from_json(shipped_architecture()), coefficients, "float16")

    def activation(shape: Shape, **levers: Any) -> int:
        return next(
            each.activation_bytes for each in estimate.phases(shape, Levers(**levers)) if each.name == "denoise"
        )

    # 640 channels of 72 x 128 cells, for 25 frames and both halves of guidance.
    size = 2 * 25 * 640 * 72 * 128 * 2
    for levers in ({}, {"split_guidance": True}):
        assert activation(replace(shape, keeps_deep=True), **levers) - activation(shape, **levers) == size


# Jobs whose steps run ahead of the host, as on a GPU.


class Ahead(Denoising):
    """Begins a step before it waits for the one before, on every device."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ahead_count = 1


@pytest.mark.parametrize("trades", [(), TRADES])
def test_a_job_whose_steps_run_ahead_gives_the_same_bytes_and_events(
    model: Any, make_clip: Any, picture: Any, monkeypatch: pytest.MonkeyPatch, trades: tuple[str, ...]
) -> None:
    memory = MemoryMonitor(model.device)
    clip = make_clip(image=picture, step_count=4, guidance_scale=2.0, frame_count=8, preview=True, trades=trades)
    expected = list(ClipJob(model, clip, memory).steps(CancelToken()))
    monkeypatch.setattr(job_module, "Denoising", Ahead)
    events = list(ClipJob(model, clip, memory).steps(CancelToken()))
    assert [type(event) for event in events] == [type(event) for event in expected]
    assert events[-1].mp4 == expected[-1].mp4
    steps = [event.index for event in events if isinstance(event, StepDone)]
    assert steps == list(range(1, 9))


def test_cancelled_while_a_step_is_under_way_begins_no_other(
    model: Any, make_clip: Any, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, token, passes = MemoryMonitor(model.device), CancelToken(), []
    original = model.svd.unet.forward
    monkeypatch.setattr(job_module, "Denoising", Ahead)
    monkeypatch.setattr(model.svd.unet, "forward", lambda *a, **n: (passes.append(1), original(*a, **n))[1])
    with pytest.raises(Cancelled):
        for event in ClipJob(model, make_clip(image=picture, step_count=9), memory).steps(token):
            if isinstance(event, StepDone) and event.index == 2:
                token.cancel()
    # The second step is over, the third was under way.
    assert len(passes) == 3
