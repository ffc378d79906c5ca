"""Attention of the tokens of a prompt on a GPU.

Knows tensors alone; see `kernels`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,no-any-unimported,untyped-decorator,import-not-found"
# ruff: noqa: N803, N806 - a kernel's arguments are pointers, numbers and constants of the compiler

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kept(
    joined, cosines, sines, keys, values, query, where, slot_stride, head_stride,
    HEADS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """One head of one token of a prompt: a query is turned, a key turned and kept, a value kept."""
    row, head = tl.program_id(0), tl.program_id(1)
    ALL: tl.constexpr = HEADS + 2 * KEYS
    at = tl.arange(0, SIZE)
    turns = (at < 2 * HALF) & (head < HEADS + KEYS)
    if INTERLEAVED:
        at_other, index = at ^ 1, at // 2
        sign = tl.where(at % 2 == 0, -1.0, 1.0)
    else:
        at_other = tl.where(at < 2 * HALF, tl.where(at < HALF, at + HALF, at - HALF), at)
        index = at % HALF
        sign = tl.where(at < HALF, -1.0, 1.0)
    if row >= tl.load(where + 2):  # it fills the step up
        return
    slot_place = tl.load(where) * slot_stride
    position = tl.load(where + 1) + row
    base = (row * ALL + head) * SIZE
    own = tl.load(joined + base + at).to(tl.float32)
    other = tl.load(joined + base + at_other).to(tl.float32)
    cosine = tl.load(cosines + position * HALF + index, mask=turns, other=1.0).to(tl.float32)
    sine = tl.load(sines + position * HALF + index, mask=turns, other=0.0).to(tl.float32)
    turned = own * cosine + sign * other * sine
    if head < HEADS:
        tl.store(query + (row * HEADS + head) * SIZE + at, turned.to(query.dtype.element_ty))
    elif head < HEADS + KEYS:
        place = slot_place + (head - HEADS) * head_stride + position * SIZE
        tl.store(keys + place + at, turned.to(keys.dtype.element_ty))
    else:
        place = slot_place + (head - HEADS - KEYS) * head_stride + position * SIZE
        tl.store(values + place + at, own.to(values.dtype.element_ty))


def keep_prompt(
    joined: Tensor,
    cosines: Tensor,
    sines: Tensor,
    keys: Tensor,
    values: Tensor,
    where: Tensor,
    *,
    head_count: int,
    interleaved: bool,
) -> Tensor:
    """Keeps the keys and values of a prompt's tokens in a slot; returns their queries, [N, heads, head size].

    `where` is [slot, tokens that it holds, tokens that come], int64; rows beyond those are not kept.
    """
    count, size = len(joined), joined.shape[-1]
    query = torch.empty((count, head_count, size), device=joined.device, dtype=joined.dtype)
    _kept[(count, joined.shape[1])](
        joined, cosines, sines, keys, values, query, where, keys.stride(0), keys.stride(1),
        HEADS=head_count, KEYS=keys.shape[1], SIZE=size, HALF=cosines.shape[1], INTERLEAVED=interleaved, num_warps=1,
    )  # fmt: skip
    return query


@triton.jit
def _attend_prompt(
    query, keys, values, where, out, slot_stride, head_stride, scaling,
    HEADS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some tokens of a prompt, one head: they attend to all that their slot holds up to their own."""
    first_row, head = tl.program_id(0) * ROWS, tl.program_id(1)
    count = tl.load(where + 2).to(tl.int32)
    if first_row >= count:
        return
    begin = tl.load(where + 1).to(tl.int32)
    row, at = first_row + tl.arange(0, ROWS), tl.arange(0, SIZE)
    position = begin + row
    place = tl.load(where) * slot_stride + head // (HEADS // KEYS) * head_stride
    rows = (row * HEADS + head)[:, None] * SIZE + at[None, :]
    asked = tl.load(query + rows, mask=(row < count)[:, None], other=0.0)
    largest = tl.full((ROWS,), -1e30, tl.float32)  # finite: a row may see nothing of a block
    total = tl.zeros((ROWS,), tl.float32)
    seen = tl.zeros((ROWS, SIZE), tl.float32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(0, begin + first_row + 1 - WINDOW)
    end = begin + tl.minimum(first_row + ROWS, count)
    for start in range(first, end, BLOCK):
        other = start + tl.arange(0, BLOCK)
        block = tl.load(keys + place + other[None, :] * SIZE + at[:, None], mask=(other < end)[None, :], other=0.0)
        score = tl.dot(asked, block) * scaling
        visible = other[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (other[None, :] > position[:, None] - WINDOW)
        score = tl.where(visible, score, float("-inf"))
        higher = tl.maximum(largest, tl.max(score, 1))
        factor = tl.exp(largest - higher)
        weight = tl.exp(score - higher[:, None])
        total = total * factor + tl.sum(weight, 1)
        block = tl.load(values + place + other[:, None] * SIZE + at[None, :], mask=(other < end)[:, None], other=0.0)
        seen = seen * factor[:, None] + tl.dot(weight.to(asked.dtype), block)
        largest = higher
    result = (seen / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + rows, result, mask=(row < count)[:, None])


def attend_prompt(
    query: Tensor, keys: Tensor, values: Tensor, where: Tensor, *, scaling: float, window: int | None
) -> Tensor:
    """Attends from a prompt's tokens to all that their slot holds up to their own.

    Args:
        query: [N, heads, head size]; see `keep_prompt`, which comes first.
        keys: The cache of one layer; `values` as well.
        values: See `keys`.
        where: See `keep_prompt`.
        scaling: Of the scores.
        window: Tokens that a row sees; None for all.

    Returns:
        [N, heads x head size]; rows that fill the step up are of any content.
    """
    count, heads, size = query.shape
    out = torch.zeros((count, heads * size), device=query.device, dtype=query.dtype)
    _attend_prompt[(triton.cdiv(count, 64), heads)](
        query, keys, values, where, out, keys.stride(0), keys.stride(1), scaling,
        HEADS=heads, KEYS=keys.shape[1], SIZE=size, WINDOW=window or 0, ROWS=64, BLOCK=64, num_warps=4,
    )  # fmt: skip
    return out
