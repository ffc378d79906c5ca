"""The operations of a step on a GPU, as kernels of our own: each reads its inputs once, and knows its lengths itself.

Written in Triton, and compiled at the server's first start. Numbers add up in 32 bits. No kernel asks the host for
anything, so that a whole step can be captured in a CUDA graph. Knows tensors alone; `plain_kernels` holds the same
operations in PyTorch's words, and a test holds the two together.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,no-any-unimported,untyped-decorator,import-not-found"
# ruff: noqa: N803, N806, SIM108 - a kernel's arguments are pointers, numbers and constants of the compiler

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfreel_llm.pick_kernel import pick
from halfreel_llm.weight import Weight

__all__ = [
    "attend",
    "attend_prompt",
    "few_products",
    "gated",
    "keep_prompt",
    "normed",
    "pick",
    "split_count",
    "vector_product",
]


@triton.jit
def _before(EARLY: tl.constexpr):
    """Lets the next kernel start its loads of weights, and waits for what the last one wrote."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _vector_product(
    rows, norm, values, scales, bias, residual, out,
    out_size, epsilon,
    IN: tl.constexpr, GATED: tl.constexpr, NORMED: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
    ADDED: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row times a matrix.

    The row may be normed first: its length is gathered beside the product, and divided out at the end, so that the row
    is read once. GATED: the matrix holds a gate above a value; out = silu(gate) x value.
    """
    own = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = own < out_size
    column = tl.arange(0, BLOCK_IN)
    place = values + own[:, None].to(tl.int64) * IN + column[None, :]
    fits = inside[:, None] & (column < IN)[None, :]
    first = tl.load(place, mask=fits, other=0.0, eviction_policy="evict_first")
    if GATED:
        upper = values + (own + out_size)[:, None].to(tl.int64) * IN + column[None, :]
        first_up = tl.load(upper, mask=fits, other=0.0, eviction_policy="evict_first")
    _before(EARLY)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    total_up = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    square = tl.zeros((BLOCK_IN,), tl.float32)
    for begin in tl.static_range(0, IN, BLOCK_IN):
        at = begin + column
        row = tl.load(rows + at, mask=at < IN, other=0.0).to(tl.float32)
        if NORMED:
            square += row * row
            row = row * tl.load(norm + at, mask=at < IN, other=0.0).to(tl.float32)
        fits = inside[:, None] & (at < IN)[None, :]
        if begin == 0:
            block = first
        else:
            block = tl.load(place + begin, mask=fits, other=0.0, eviction_policy="evict_first")
        total += block.to(tl.float32) * row[None, :]
        if GATED:
            if begin == 0:
                block_up = first_up
            else:
                block_up = tl.load(upper + begin, mask=fits, other=0.0, eviction_policy="evict_first")
            total_up += block_up.to(tl.float32) * row[None, :]
    result = tl.sum(total, 1)
    result_up = tl.sum(total_up, 1)
    if SCALED:
        result *= tl.load(scales + own, mask=inside, other=0.0)
    if NORMED:
        length = tl.rsqrt(tl.sum(square, 0) / IN + epsilon)
        result *= length
        result_up *= length
    if BIASED:
        result += tl.load(bias + own, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        if SCALED:
            result_up *= tl.load(scales + out_size + own, mask=inside, other=0.0)
        result = result / (1.0 + tl.exp(-result)) * result_up
    if ADDED:
        result += tl.load(residual + own, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + own, result.to(out.dtype.element_ty), mask=inside)


def vector_product(
    row: Tensor,
    weight: Weight,
    *,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    residual: Tensor | None = None,
    gated: bool = False,
    early: bool = False,
    block: tuple[int, int, int] | None = None,
) -> Tensor:
    """Returns one row times a matrix, [1, out]: normed before, gated or added to `residual` after, as asked."""
    values = weight.values
    rows_out, size_in = values.shape
    size_out = rows_out // 2 if gated else rows_out
    out = torch.empty((1, size_out), device=row.device, dtype=row.dtype)
    block_out, block_in, warps = block or _vector_block(size_in, gated=gated, int8=weight.scales is not None)
    _vector_product[(triton.cdiv(size_out, block_out),)](
        row, norm if norm is not None else row, values, weight.scales if weight.scales is not None else row,
        weight.bias if weight.bias is not None else row, residual if residual is not None else row, out,
        size_out, epsilon,
        IN=size_in, GATED=gated, NORMED=norm is not None, SCALED=weight.scales is not None,
        BIASED=weight.bias is not None, ADDED=residual is not None,
        BLOCK_OUT=block_out, BLOCK_IN=block_in, EARLY=early, num_warps=warps,
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return out


def _vector_block(size_in: int, *, gated: bool, int8: bool) -> tuple[int, int, int]:
    """Returns rows and columns of a matrix that a program takes at once, and its warps; chosen by measurement."""
    columns = min(2048, triton.next_power_of_2(size_in))
    if int8:
        return (2, min(1024, columns), 4) if gated else (4, columns, 8)
    return (2, columns, 8) if gated else (2, columns, 4)


@triton.jit
def _few_products(
    rows, values, scales, bias, residual, out,
    row_count, out_size,
    IN: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Some rows times a matrix, which is read once for up to BLOCK_ROWS of them."""
    which = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    own = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside, known = own < out_size, which < row_count
    column = tl.arange(0, BLOCK_IN)
    left = rows + which[:, None] * IN + column[None, :]
    right = values + own[None, :].to(tl.int64) * IN + column[:, None]
    upper = values + (own + out_size)[None, :].to(tl.int64) * IN + column[:, None]
    _before(EARLY)
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    total_up = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for begin in range(0, IN, BLOCK_IN):
        fits = begin + column < IN
        row = tl.load(left + begin, mask=known[:, None] & fits[None, :], other=0.0)
        block = tl.load(right + begin, mask=inside[None, :] & fits[:, None], other=0.0)
        total = tl.dot(row, block.to(row.dtype), total)
        if GATED:
            block_up = tl.load(upper + begin, mask=inside[None, :] & fits[:, None], other=0.0)
            total_up = tl.dot(row, block_up.to(row.dtype), total_up)
    if SCALED:
        total *= tl.load(scales + own, mask=inside, other=0.0)[None, :]
    if BIASED:
        total += tl.load(bias + own, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if SCALED:
            total_up *= tl.load(scales + out_size + own, mask=inside, other=0.0)[None, :]
        total = total / (1.0 + tl.exp(-total)) * total_up
    place = which[:, None] * out_size + own[None, :]
    if ADDED:
        total += tl.load(residual + place, mask=known[:, None] & inside[None, :], other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=known[:, None] & inside[None, :])


def few_products(
    rows: Tensor,
    weight: Weight,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
    early: bool = False,
    block: tuple[int, int, int, int, int] | None = None,
) -> Tensor:
    """Returns some rows times a matrix, [N, out]: gated or added to `residual` after, as asked."""
    values = weight.values
    rows_out, size_in = values.shape
    size_out = rows_out // 2 if gated else rows_out
    out = torch.empty((len(rows), size_out), device=rows.device, dtype=rows.dtype)
    block_rows, block_out, block_in, warps, stages = block or _few_block(len(rows), gated)
    _few_products[(triton.cdiv(size_out, block_out), triton.cdiv(len(rows), block_rows))](
        rows, values, weight.scales if weight.scales is not None else rows,
        weight.bias if weight.bias is not None else rows, residual if residual is not None else rows, out,
        len(rows), size_out,
        IN=size_in, GATED=gated, SCALED=weight.scales is not None, BIASED=weight.bias is not None,
        ADDED=residual is not None, BLOCK_ROWS=block_rows, BLOCK_OUT=block_out, BLOCK_IN=block_in, EARLY=early,
        num_warps=warps, num_stages=stages, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return out


def _few_block(row_count: int, gated: bool) -> tuple[int, int, int, int, int]:
    """Returns rows, outputs and inputs of a program, its warps and stages; chosen by measurement."""
    return max(16, min(64, triton.next_power_of_2(row_count))), 32, 128, 4, 4


@triton.jit
def _normed(hidden, delta, norm, out, size, epsilon, ADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Adds `delta` to a row where asked, keeps the sum, and norms it."""
    row = tl.program_id(0).to(tl.int64) * size
    at = tl.arange(0, BLOCK)
    inside = at < size
    values = tl.load(hidden + row + at, mask=inside, other=0.0)
    if ADDED:
        values = values + tl.load(delta + row + at, mask=inside, other=0.0)
        tl.store(hidden + row + at, values, mask=inside)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / size + epsilon)
    weight = tl.load(norm + at, mask=inside, other=0.0)
    tl.store(out + row + at, (wide * scale).to(weight.dtype) * weight, mask=inside)


def normed(hidden: Tensor, norm: Tensor, epsilon: float, delta: Tensor | None = None) -> Tensor:
    """Returns the rows of `hidden` normed; adds `delta` to them first, in place, where there is one."""
    out = torch.empty_like(hidden)
    size = hidden.shape[-1]
    block = triton.next_power_of_2(size)
    _normed[(hidden.numel() // size,)](
        hidden, delta if delta is not None else hidden, norm, out, size, epsilon,
        ADDED=delta is not None, BLOCK=block, num_warps=max(1, min(16, block // 256)),
    )  # fmt: skip
    return out


@triton.jit
def _gated(both, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(both + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * size + size + at, mask=inside, other=0.0)
    silu = (gate / (1.0 + tl.exp(-gate))).to(up.dtype)
    tl.store(out + row * size + at, silu * up, mask=inside)


def gated(both: Tensor) -> Tensor:
    """Returns silu(first half) x second half of each row."""
    size = both.shape[-1] // 2
    out = torch.empty((len(both), size), device=both.device, dtype=both.dtype)
    _gated[(len(both), triton.cdiv(size, 1024))](both, out, size, BLOCK=1024)
    return out


@triton.jit
def _attend(
    joined, cosines, sines, keys, values, slots, lengths, parts, sums, out,
    slot_stride, head_stride, scaling,
    HEADS: tl.constexpr, KEYS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token of each row: its key and value are kept, and its heads attend to a share of what its slot holds.

    A program takes the query heads of one key head of one row, and one of SPLITS stretches of the positions.
    """
    row, key_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _before(EARLY)
    slot = tl.load(slots + row).to(tl.int64)
    length = tl.load(lengths + row).to(tl.int32)
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
    first = 0
    if WINDOW > 0:
        first = tl.maximum(0, length + 1 - WINDOW)
    share = tl.cdiv(tl.cdiv(length - first, SPLITS), BLOCK) * BLOCK
    begin = first + split * share
    end = tl.minimum(begin + share, length)
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
def _joined_parts(parts, sums, out, SIZE: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr):
    """Joins what one head saw in each stretch of the positions."""
    head = tl.program_id(0)
    _before(EARLY)
    split = tl.arange(0, SPLITS)
    largest = tl.load(sums + (head * SPLITS + split) * 2)
    total = tl.load(sums + (head * SPLITS + split) * 2 + 1)
    weight = tl.exp(largest - tl.max(largest, 0))
    at = tl.arange(0, SIZE)
    seen = tl.load(parts + (head * SPLITS + split)[:, None] * SIZE + at[None, :])
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
    early: bool = False,
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
        early: Whether the next kernel may begin before this one has ended.

    Returns:
        [N, heads x head size].
    """
    count, size = len(joined), joined.shape[-1]
    out = torch.empty((count, head_count * size), device=joined.device, dtype=joined.dtype)
    parts, sums = out, out
    if splits > 1:
        parts = torch.empty((count, head_count, splits, size), device=joined.device, dtype=torch.float32)
        sums = torch.empty((count, head_count, splits, 2), device=joined.device, dtype=torch.float32)
    pdl = {"launch_pdl": True} if early else {}
    key_count = keys.shape[1]
    _attend[(count, key_count, splits)](
        joined, cosines, sines, keys, values, slots, lengths, parts, sums, out,
        keys.stride(0), keys.stride(1), scaling,
        HEADS=head_count, KEYS=key_count, GROUP=max(16, triton.next_power_of_2(head_count // key_count)), SIZE=size,
        HALF=cosines.shape[1], INTERLEAVED=interleaved, WINDOW=window or 0, SPLITS=splits,
        BLOCK=32 if splits > 1 else 64, EARLY=early, num_warps=4, **pdl,
    )  # fmt: skip
    if splits > 1:
        _joined_parts[(count * head_count,)](
            parts, sums, out, SIZE=size, SPLITS=splits, EARLY=early, num_warps=4, **pdl
        )
    return out


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
