"""Compiled blocks give the numbers of uncompiled ones at every size, are never compiled while a clip waits, and stop.

Most tests trace the blocks, and leave out what makes kernels of that, which takes minutes for all of them on a CPU; one
layer goes all the way.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_video import svd_pipeline

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import Cancelled
from halfreel_video.compiled import CompiledBlocks, Region
from halfreel_video.convolutions import take_over_convolutions
from halfreel_video.lean_unet import make_lean
from halfreel_video.pulse import Pulse
from halfreel_video.svd import decode

TRACED = "eager"
pytestmark = pytest.mark.timeout(600)  # tracing takes half a minute of a processor that others use as well


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any, CompiledBlocks]:
    """A pipeline as it is, and one of the same weights whose blocks are compiled, as far as that goes without C++."""
    plain = svd_pipeline(3)
    for part in (plain.unet, plain.vae):
        part.eval().requires_grad_(False)
    blocks_too = copy.deepcopy(plain.unet), copy.deepcopy(plain.vae)
    make_lean(plain.unet)
    fast = type(plain)(**{**plain.components, "unet": blocks_too[0], "vae": blocks_too[1]})
    blocks = CompiledBlocks(fast, backend=TRACED)
    only(blocks, 0, 2)
    with Pulse(fast).of(CancelToken()):  # hooks must not get in the way
        assert blocks.compile_all(), blocks.problem
    return plain, fast, blocks


def only(blocks: CompiledBlocks, *indices: int) -> None:
    """Compiles for some of the samples: 0 with guidance, 1 without, 2 decoding."""
    samples = list(blocks._samples())
    blocks._samples = lambda: iter([samples[index] for index in indices])  # type: ignore[method-assign]  # to be quick


def noise(unet: Any, halves: int, frame_count: int, height: int, width: int) -> torch.Tensor:
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


def compilations() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 2, 10, 12), (2, 4, 9, 7)], ids=["square", "wide", "odd"])
def test_the_same_numbers_at_other_sizes_without_compiling_anew(
    pair: tuple[Any, Any, CompiledBlocks], shape: tuple[int, int, int, int]
) -> None:
    plain, fast, blocks = pair
    expected, before = noise(plain.unet, *shape), compilations()
    blocks.use(False)
    assert torch.equal(noise(fast.unet, *shape), expected)  # taken over, and not used
    assert blocks.use(True)
    with NeverPlain(blocks):
        given = noise(fast.unet, *shape)
    blocks.use(False)
    assert expected.std() > 0.1
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    assert compilations() == before


def test_the_same_frames_at_other_sizes(pair: tuple[Any, Any, CompiledBlocks]) -> None:
    plain, fast, blocks = pair
    latents = torch.randn(1, 5, 4, 12, 8, generator=torch.Generator().manual_seed(1))
    expected = list(decode(plain, latents, 4))  # four frames, and one alone
    blocks.use(True)
    given = list(decode(fast, latents, 4))
    blocks.use(False)
    for one, other in zip(given, expected, strict=True):
        assert abs(one.astype(int) - other).max() <= 1


def test_what_was_not_compiled_runs_as_it_is(pair: tuple[Any, Any, CompiledBlocks]) -> None:
    plain, fast, blocks = pair
    wide, fast_wide = plain.unet.to(torch.float64), fast.unet.to(torch.float64)
    try:
        before = compilations()
        blocks.use(True)
        with torch.no_grad():
            arguments = [torch.randn(2, 3, 8, 8, 8, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)]
            named = {
                "encoder_hidden_states": torch.randn(2, 1, 32, dtype=torch.float64),
                "added_time_ids": torch.rand(2, 3, dtype=torch.float64),
            }
            assert torch.equal(fast_wide(*arguments, **named)[0], wide(*arguments, **named)[0])
        assert compilations() == before
    finally:
        blocks.use(False)
        plain.unet.to(torch.float32), fast.unet.to(torch.float32)


def test_a_job_stops_within_a_block(pair: tuple[Any, Any, CompiledBlocks]) -> None:
    _, fast, blocks = pair
    pulse, token, seen = Pulse(fast), CancelToken(), []

    def cancel_here(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 3:
            token.cancel()

    hooks = [block.register_forward_pre_hook(cancel_here) for block in fast.unet.mid_block.resnets]
    hooks += [block.register_forward_pre_hook(cancel_here) for block in fast.unet.up_blocks[0].resnets]
    blocks.use(True)
    try:
        with pulse.of(token), pytest.raises(Cancelled):
            noise(fast.unet, 2, 5, 8, 8)
        assert len(seen) == 3
        noise(fast.unet, 2, 5, 8, 8)  # nothing is left of it
    finally:
        blocks.use(False)
        for hook in hooks:
            hook.remove()


def test_nothing_is_used_before_all_is_ready_and_weights_may_move_between_two_blocks() -> None:
    pipeline = svd_pipeline(3)
    for part in (pipeline.unet, pipeline.vae):
        part.eval().requires_grad_(False)
    blocks = CompiledBlocks(pipeline, backend="eager")
    before = noise(pipeline.unet, 2, 3, 8, 8)
    piece_count = 0
    blocks._unet, blocks._decoder = blocks._unet[:3], blocks._decoder[:1]
    only(blocks, 0, 2)
    while blocks.is_pending:
        assert not blocks.use(True)
        assert torch.equal(noise(pipeline.unet, 2, 3, 8, 8), before)
        for parameter in pipeline.unet.parameters():
            parameter.data = parameter.data.clone()
        blocks.compile_next()
        piece_count += 1
    assert (blocks.ready, blocks.problem) == (True, "")
    assert piece_count == 3 + 1 + 1  # every block, and the end
    assert blocks.use(True)
    given = noise(pipeline.unet, 2, 3, 8, 8)
    torch.testing.assert_close(given, before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(given, before)


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (lambda hidden, *_, **__: hidden * 1.5, "ArithmeticError: compiled blocks are off by"),
        (lambda hidden, *_, **__: print(1 / 0), "ZeroDivisionError"),
    ],
    ids=["other numbers", "no numbers"],
)
def test_a_compiler_that_fails_or_errs_is_not_used(
    breaks: Callable[..., Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = svd_pipeline(3)
    blocks = CompiledBlocks(pipeline, backend="eager")
    monkeypatch.setattr(blocks, "_unet", blocks._unet[:1])
    before = noise(pipeline.unet, 2, 3, 8, 8)
    blocks._unet[0]._compiled = breaks
    assert not blocks.compile_all()
    assert told in blocks.problem
    assert not blocks.use(True)
    assert torch.equal(noise(pipeline.unet, 2, 3, 8, 8), before)
    blocks.compile_next()  # nothing is left to do


@pytest.mark.parametrize("temporal", ["picture", "product"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_where_they_are_compiled(temporal: Any, stride: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleList(
        [
            torch.nn.Conv2d(6, 8, 3, padding=1, stride=stride),
            torch.nn.Conv3d(8, 5, (3, 1, 1), padding=(1, 0, 0)),
            torch.nn.Conv3d(5, 4, 1),
            torch.nn.Conv3d(4, 4, 3, padding=1),
            torch.nn.Conv2d(4, 4, 1, groups=2),
        ]
    ).requires_grad_(False)

    def run(hidden: torch.Tensor) -> torch.Tensor:
        picture, *films, last = model
        hidden = picture(hidden)
        hidden = hidden.reshape(2, 3, *hidden.shape[1:]).permute(0, 2, 1, 3, 4)
        for film in films:
            hidden = film(hidden)
        return last(hidden.flatten(0, 1)[:4, :4].transpose(0, 1)[:4])

    drawn = torch.randn(6, 6, 8, 10)
    expected = run(drawn)
    take_over_convolutions(model, temporal)
    take_over_convolutions(model, temporal)
    assert torch.equal(run(drawn), expected)
    called: list[str] = []

    def noting(graph: torch.fx.GraphModule, _: Any) -> Any:
        called.extend(getattr(node.target, "__name__", "") for node in graph.graph.nodes)
        return graph.forward

    given = torch.compile(run, dynamic=True, fullgraph=True, backend=noting)(drawn)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
    # Of the films' three, one looks at more than frames, and stays.
    assert called.count("conv3d") == 1
    assert called.count("linear") == (2 if temporal == "product" else 0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's compiler needs a C++ compiler for a CPU")
def test_the_whole_way_through_the_compiler() -> None:
    from diffusers.models.attention import FeedForward

    torch.manual_seed(0)
    layer = FeedForward(16, activation_fn="geglu").eval().requires_grad_(False)
    region = Region(layer, "forward", "inductor")
    tokens = torch.randn(3, 7, 16)
    expected, others = layer(tokens), torch.randn(2, 5, 16)
    expected_of_others = layer(others)
    region.is_on, region.stance = True, "default"
    with torch.no_grad():
        given = layer(tokens)
        region.stance = "fail_on_recompile"
        torch.testing.assert_close(layer(others), expected_of_others, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)


class NeverPlain:
    """Fails where a block is run uncompiled."""

    def __init__(self, blocks: CompiledBlocks) -> None:
        self._regions = blocks._unet + blocks._decoder

    def __enter__(self) -> None:
        for region in self._regions:
            region.stance = "fail_on_recompile"

    def __exit__(self, *_: object) -> None:
        for region in self._regions:
            region.stance = "eager_on_recompile"
