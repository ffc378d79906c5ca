"""Attention of single tokens on a GPU, which keeps their keys and values itself.

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
def _stretch(length, split, WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the first position of a stretch of what a row sees, and the one behind its last."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(0, length + 1 - WINDOW)
    share = tl.cdiv(tl.cdiv(length - first, SPLITS), BLOCK) * BLOCK
    begin = first + split * share
    return begin, tl.minimum(begin + share, length)


@triton.jit
def _attend(
    joined, cosines, sines, keys, values, slots, lengths, parts, sums, out,
    slot_stride, head_stride, scaling,
    HEADS: tl.constexpr, KEYS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token of each row: its key and value are kept, and its heads attend to a share of what its slot holds.

    A program takes the query heads of one key head of one row, and one of SPLITS stretches of the positions.
    """
    row, key_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + row).to(tl.int64)
    length = tl.load(lengths + row).to(tl.int32)
    begin, end = _stretch(length, split, WINDOW, SPLITS, BLOCK)
    if (split > 0) & (begin >= end):  # few positions fill few stretches
        return
    at = tl.arange(0, SIZE)
    if INTERLEAVED:
        at_other, index = at ^ 1, at // 2
        sign = tl.where(at % 2 == 0, -1.0, 1.0)
        turns = at < 2 * HALF
    else:
        turns = at < 2 * HALF
        at_other = tl.where(turns, tl.where(at < HALF, at + HALF, at - HALF), at)
        index = at % HALF
        sign = tl.where(at < HALF, -1.0, 1.0)
    ALL: tl.constexpr = HEADS + 2 * KEYS
    PER: tl.constexpr = HEADS // KEYS
    heads = tl.arange(0, GROUP)
    real = heads < PER
    head = key_head * PER + tl.where(real, heads, 0)
    base = (row * ALL + head)[:, None] * SIZE
    own = tl.load(joined + base + at[None, :]).to(tl.float32)
    other = tl.load(joined + base + at_other[None, :]).to(tl.float32)
    cosine = tl.load(cosines + length * HALF + index, mask=turns, other=1.0).to(tl.float32)
    sine = tl.load(sines + length * HALF + index, mask=turns, other=0.0).to(tl.float32)
    query = own * cosine[None, :] + sign[None, :] * other * sine[None, :]
    kept = keys.dtype.element_ty
    query = query.to(kept)
    place = slot * slot_stride + key_head * head_stride
    largest = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    seen = tl.zeros((GROUP, SIZE), tl.float32)
    if split == 0:
        key_at = (row * ALL + HEADS + key_head) * SIZE
        key = tl.load(joined + key_at + at).to(tl.float32) * cosine
        key += sign * tl.load(joined + key_at + at_other).to(tl.float32) * sine
        key = key.to(kept)
        value = tl.load(joined + key_at + KEYS * SIZE + at).to(kept)
        tl.store(keys + place + length * SIZE + at, key)
        tl.store(values + place + length * SIZE + at, value)
        largest = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scaling
        total += 1.0
        seen += value.to(tl.float32)[None, :]
    for start in range(begin, end, BLOCK):
        position = start + tl.arange(0, BLOCK)
        inside = position < end
        block = tl.load(keys + place + position[None, :] * SIZE + at[:, None], mask=inside[None, :], other=0.0)
        score = tl.dot(query, block) * scaling
        score = tl.where(inside[None, :], score, float("-inf"))
        higher = tl.maximum(largest, tl.max(score, 1))
        factor = tl.exp(largest - higher)
        weight = tl.exp(score - higher[:, None])
        total = total * factor + tl.sum(weight, 1)
        block = tl.load(values + place + position[:, None] * SIZE + at[None, :], mask=inside[:, None], other=0.0)
        seen = seen * factor[:, None] + tl.dot(weight.to(kept), block)
        largest = higher
    if SPLITS == 1:
        result = seen / total[:, None]
        tl.store(out + (row * HEADS + head)[:, None] * SIZE + at[None, :], result.to(kept), mask=real[:, None])
    else:
        part = (row * HEADS + head) * SPLITS + split
        tl.store(parts + part[:, None] * SIZE + at[None, :], seen, mask=real[:, None])
        tl.store(sums + part * 2, largest, mask=real)
        tl.store(sums + part * 2 + 1, total, mask=real)


@triton.jit
def _joined_parts(
    lengths, parts, sums, out,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Joins what one head saw in each stretch of the positions."""
    head = tl.program_id(0)
    split = tl.arange(0, SPLITS)
    begin, end = _stretch(tl.load(lengths + head // HEADS).to(tl.int32), split, WINDOW, SPLITS, BLOCK)
    known = (split == 0) | (begin < end)
    largest = tl.load(sums + (head * SPLITS + split) * 2, mask=known, other=float("-inf"))
    total = tl.load(sums + (head * SPLITS + split) * 2 + 1, mask=known, other=0.0)
    weight = tl.exp(largest - tl.max(largest, 0))
    at = tl.arange(0, SIZE)
    seen = tl.load(parts + (head * SPLITS + split)[:, None] * SIZE + at[None, :], mask=known[:, None], other=0.0)
    result = tl.sum(seen * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + head * SIZE + at, result.to(out.dtype.element_ty))


def split_count(row_count: int, key_head_count: int, processor_count: int) -> int:
    """Returns in how many stretches a row's positions are read, so that the processors of a GPU are all at work."""
    wanted = processor_count // (row_count * key_head_count)
    return max(1, min(64, 1 << max(0, wanted.bit_length() - 1)))


def attend(
    joined: Tensor,
    cosines: Tensor,
    sines: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    lengths: Tensor,
    *,
    head_count: int,
    interleaved: bool,
    scaling: float,
    window: int | None,
    splits: int,
) -> Tensor:
    """Keeps the key and value of one token a row, and attends to all that the row's slot holds.

    Args:
        joined: [N, heads + 2 x key heads, head size], query, key and value, not rotated.
        cosines: [context, rotary size / 2]; `sines` as well.
        sines: See `cosines`.
        keys: The cache of one layer, [slots, key heads, context, head size]; `values` as well.
        values: See `keys`.
        slots: [N] int64.
        lengths: [N] int64: tokens that each slot holds, without this one.
        head_count: Query heads.
        interleaved: See `Shape`.
        scaling: Of the scores.
        window: Tokens that a row sees; None for all.
        splits: A power of two; see `split_count`.

    Returns:
        [N, heads x head size].
    """
    count, size = len(joined), joined.shape[-1]
    out = torch.empty((count, head_count * size), device=joined.device, dtype=joined.dtype)
    parts, sums = out, out
    if splits > 1:
        parts = torch.empty((count, head_count, splits, size), device=joined.device, dtype=torch.float32)
        sums = torch.empty((count, head_count, splits, 2), device=joined.device, dtype=torch.float32)
    key_count = keys.shape[1]
    block = 32 if splits > 1 else 64
    _attend[(count, key_count, splits)](
        joined, cosines, sines, keys, values, slots, lengths, parts, sums, out,
        keys.stride(0), keys.stride(1), scaling,
        HEADS=head_count, KEYS=key_count, GROUP=max(16, triton.next_power_of_2(head_count // key_count)), SIZE=size,
        HALF=cosines.shape[1], INTERLEAVED=interleaved, WINDOW=window or 0, SPLITS=splits,
        BLOCK=block, num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _joined_parts[(count * head_count,)](
            lengths, parts, sums, out,
            HEADS=head_count, SIZE=size, WINDOW=window or 0, SPLITS=splits, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return out
