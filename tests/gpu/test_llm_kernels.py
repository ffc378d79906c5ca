"""The kernels of the language model's step against their definitions in PyTorch; each is compiled for this GPU."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")
if not torch.cuda.is_available() and not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("no GPU that torch can use", allow_module_level=True)

import plain_kernels

from halfreel_llm import kernels
from halfreel_llm.sampling import SamplingSettings, pick
from halfreel_llm.weight import Weight

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPSILON = 1e-5
HALF_ROUNDING = 1e-3


def drawn(*size: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*size, device=DEVICE)).half()


def distance(given: Tensor, wanted: Tensor) -> float:
    return float((given.double() - wanted.double()).norm() / wanted.double().norm())


def exact(weight: Weight) -> Tensor:
    values = weight.values.double()
    return values if weight.scales is None else values * weight.scales.double()[:, None]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("fetches", [False, True])
def test_products_of_one_row(int8: bool, fetches: bool) -> None:
    if fetches and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(1)
    row, norm, residual = drawn(1, 160), drawn(160), drawn(1, 96)
    weight, both = Weight(drawn(96, 160, scale=0.1), drawn(96)), Weight(drawn(96, 160, scale=0.1), None)
    if int8:
        weight.quantise()
        both.quantise()
    ahead = both.values if fetches else None
    wide = row.double()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON) * norm.double()
    assert weight.bias is not None
    wanted = normed @ exact(weight).T + weight.bias.double() + residual.double()
    given = kernels.vector_product(row, weight, norm=norm, epsilon=EPSILON, residual=residual, ahead=ahead)
    assert distance(given, wanted) < HALF_ROUNDING
    gate, up = (normed @ exact(both).T).chunk(2, dim=-1)
    given = kernels.vector_product(row, both, norm=norm, epsilon=EPSILON, gated=True, ahead=ahead)
    assert distance(given, F.silu(gate) * up) < HALF_ROUNDING


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [2, 16, 50, 100])
def test_products_of_some_rows(int8: bool, rows: int) -> None:
    torch.manual_seed(2)
    hidden, weight = drawn(rows, 160), Weight(drawn(96, 160, scale=0.1), drawn(96))
    if int8:
        weight.quantise()
    assert weight.bias is not None
    wanted = hidden.double() @ exact(weight).T + weight.bias.double()
    assert distance(kernels.few_products(hidden, weight), wanted) < HALF_ROUNDING


def test_norms_and_gates() -> None:
    torch.manual_seed(3)
    hidden, delta, norm = drawn(3, 160), drawn(3, 160), drawn(160)
    wanted = plain_kernels.normed(hidden.clone(), norm, EPSILON, delta)
    given_hidden = hidden.clone()
    assert distance(kernels.normed(given_hidden, norm, EPSILON, delta), wanted) < HALF_ROUNDING
    assert torch.equal(given_hidden, hidden + delta)
    both = drawn(3, 96)
    assert distance(kernels.gated(both), plain_kernels.gated(both)) < HALF_ROUNDING


@pytest.mark.parametrize("splits", [1, 2, 16])
@pytest.mark.parametrize(
    ("heads", "keys", "size", "rotary", "interleaved", "window"),
    [(32, 2, 128, 64, True, None), (8, 4, 16, 16, False, None), (8, 4, 16, 16, False, 6)],
)
def test_attention(
    heads: int, keys: int, size: int, rotary: int, interleaved: bool, window: int | None, splits: int
) -> None:
    torch.manual_seed(4)
    cache = [drawn(6, keys, 128, size), drawn(6, keys, 128, size)]
    angles = torch.rand(128, rotary // 2, device=DEVICE) * 6
    cosines, sines = angles.cos().half(), angles.sin().half()
    joined = drawn(3, heads + 2 * keys, size)
    slots, lengths = torch.tensor([1, 3, 4], device=DEVICE), torch.tensor([77, 0, 120], device=DEVICE)
    options = {"head_count": heads, "interleaved": interleaved, "scaling": size**-0.5, "window": window}
    wide = [part.float().cpu() for part in (joined, cosines, sines, *cache)]
    wanted = plain_kernels.attend(*wide, slots.cpu(), lengths.cpu(), splits=1, **options)  # type: ignore[arg-type]
    given = kernels.attend(joined, cosines, sines, *cache, slots, lengths, splits=splits, **options)  # type: ignore[arg-type]
    assert distance(given.cpu(), wanted) < HALF_ROUNDING
    for kept, right in zip(cache, wide[3:], strict=True):
        assert distance(kept.cpu(), right) < HALF_ROUNDING
    prompt = drawn(9, heads + 2 * keys, size)
    options = {"head_count": heads, "interleaved": interleaved}
    wide[0] = prompt.float().cpu()
    where = torch.tensor([2, 20, 7])  # two rows fill the step up
    wanted = plain_kernels.keep_prompt(*wide, where, **options)  # type: ignore[arg-type]
    given = kernels.keep_prompt(prompt, cosines, sines, *cache, where.to(DEVICE), **options)  # type: ignore[arg-type]
    assert distance(given[:7].cpu(), wanted[:7]) < HALF_ROUNDING
    for kept, right in zip(cache, wide[3:], strict=True):
        assert distance(kept.cpu(), right) < HALF_ROUNDING


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("begin", [0, 50])
def test_a_prompt_attends_to_all_before_it(begin: int, window: int | None) -> None:
    torch.manual_seed(5)
    query, keys, values = drawn(150, 8, 64), drawn(3, 2, 256, 64), drawn(3, 2, 256, 64)
    where = torch.tensor([1, begin, 140], device=DEVICE)
    given = kernels.attend_prompt(query, keys, values, where, scaling=0.125, window=window)
    wide = [part.double().cpu() for part in (query, keys, values)]
    wanted = plain_kernels.attend_prompt(*wide, where.cpu(), scaling=0.125, window=window)
    assert distance(given[:140].cpu(), wanted[:140]) < HALF_ROUNDING


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter, about the infinite logit
def test_picks_are_those_of_the_cpu() -> None:
    torch.manual_seed(6)
    size, count = 1000, 12
    words = -(-size // 32)
    table = (
        (0, 1, 0, 1), (1, 1, 0, 2), (0.7, 0.9, 0, 3), (1.3, 1, 17, 4), (1, 0.5, 100, 5), (2, 0.99, 1000, 2**63 - 1),
        (0.5, 0.3, 2, 7), (1, 1e-7, 0, 8), (1e-30, 0.9, 5, 9), (1.5, 0.8, 3, 10), (1, 1, 0, 2), (0.9, 0.95, 0, 11),
    )  # fmt: skip
    settings = [SamplingSettings(float(t), float(p), k, seed) for t, p, k, seed in table]
    logits = drawn(count, size, scale=2.0)
    logits[10, 3] = float("inf")
    masks = torch.randint(-(2**31), 2**31 - 1, (count, words), dtype=torch.int32)
    allowed = torch.randint(-(2**31), 2**31 - 1, (words,), dtype=torch.int32)
    masked = torch.tensor([number % 3 == 0 for number in range(count)], dtype=torch.int32)
    may = plain_kernels.unpacked(allowed, size).repeat(count, 1)
    for row in range(0, count, 3):
        may[row] &= plain_kernels.unpacked(masks[row], size)
    lengths = torch.arange(count) * 7
    wanted = pick(logits.cpu(), settings, lengths.tolist(), may)
    tokens = torch.zeros(count, dtype=torch.int64, device=DEVICE)
    picked = torch.full_like(tokens, 9)
    columns = list(zip(*table, strict=True))
    kernels.pick(
        logits, torch.arange(count, device=DEVICE), lengths.to(DEVICE), tokens, allowed.to(DEVICE), masks.to(DEVICE),
        masked.to(DEVICE), torch.tensor(columns[0], device=DEVICE, dtype=torch.float32),
        torch.tensor(columns[1], device=DEVICE, dtype=torch.float32),
        torch.tensor(columns[2], device=DEVICE, dtype=torch.int32), torch.tensor(columns[3], device=DEVICE), picked,
    )  # fmt: skip
    assert picked.tolist() == wanted
    assert wanted[10] == -1
    assert tokens.tolist() == [max(0, token) for token in wanted]
