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

_KEPT_ROWS = 16  # tokens of a prompt that a program keeps


@triton.jit
def _kept(
    joined, cosines, sines, keys, values, query, where, slot_stride, head_stride,
    HEADS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """One head of some tokens of a prompt: queries are turned, keys turned and kept, values kept."""
    row, head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    count = tl.load(where + 2)
    if tl.program_id(0) * ROWS >= count:  # they fill the step up
        return
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
    real = (row < count)[:, None]
    position = (tl.load(where + 1) + row)[:, None]
    base = ((row * ALL + head) * SIZE)[:, None]
    own = tl.load(joined + base + at[None, :], mask=real, other=0.0).to(tl.float32)
    other = tl.load(joined + base + at_other[None, :], mask=real, other=0.0).to(tl.float32)
    angle = position * HALF + index[None, :]
    cosine = tl.load(cosines + angle, mask=real & turns[None, :], other=1.0).to(tl.float32)
    sine = tl.load(sines + angle, mask=real & turns[None, :], other=0.0).to(tl.float32)
    turned = own * cosine + sign[None, :] * other * sine
    slot_place = tl.load(where) * slot_stride
    if head < HEADS:
        place = ((row * HEADS + head) * SIZE)[:, None] + at[None, :]
        tl.store(query + place, turned.to(query.dtype.element_ty), mask=real)
    elif head < HEADS + KEYS:
        place = slot_place + (head - HEADS) * head_stride + position * SIZE + at[None, :]
        tl.store(keys + place, turned.to(keys.dtype.element_ty), mask=real)
    else:
        place = slot_place + (head - HEADS - KEYS) * head_stride + position * SIZE + at[None, :]
        tl.store(values + place, own.to(values.dtype.element_ty), mask=real)


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
    _kept[(triton.cdiv(count, _KEPT_ROWS), joined.shape[1])](
        joined, cosines, sines, keys, values, query, where, keys.stride(0), keys.stride(1),
        HEADS=head_count, KEYS=keys.shape[1], SIZE=size, HALF=cosines.shape[1], INTERLEAVED=interleaved,
        ROWS=_KEPT_ROWS, num_warps=4,
    )  # fmt: skip
    return query


@triton.jit
def _attend_prompt(
    query, keys, values, where, out, row_count, slot_stride, head_stride, scaling,
    HEADS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some tokens of a prompt, one head: they attend to all that their slot holds up to their own."""
    first_row, head = tl.program_id(0) * ROWS, tl.program_id(1)
    count = tl.load(where + 2).to(tl.int32)
    begin = tl.load(where + 1).to(tl.int32)
    row, at = first_row + tl.arange(0, ROWS), tl.arange(0, SIZE)
    position = begin + row
    place = tl.load(where) * slot_stride + head // (HEADS // KEYS) * head_stride
    rows = (row * HEADS + head)[:, None] * SIZE + at[None, :]
    inside = (row < row_count)[:, None]
    if first_row >= count:  # finite numbers all the same: layers behind this one reckon with them
        tl.store(out + rows, tl.zeros((ROWS, SIZE), out.dtype.element_ty), mask=inside)
        return
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
    tl.store(out + rows, result, mask=inside)


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
    out = torch.empty((count, heads * size), device=query.device, dtype=query.dtype)
    _attend_prompt[(triton.cdiv(count, 64), heads)](
        query, keys, values, where, out, count, keys.stride(0), keys.stride(1), scaling,
        HEADS=heads, KEYS=keys.shape[1], SIZE=size, WINDOW=window or 0, ROWS=64, BLOCK=64, num_warps=4,
    )  # fmt: skip
    return out
