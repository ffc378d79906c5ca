"""Rows times matrices on a GPU, read once, with the norm before and the gate or addition after taken along.

Knows tensors alone; see `kernels`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,no-any-unimported,untyped-decorator,import-not-found"
# ruff: noqa: N803, SIM108 - a kernel's arguments are pointers, numbers and constants of the compiler

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfreel_llm.weight import Weight

# Between two kernels the memory would have nothing to do for some 2.5 us, and at one reply a step has over a hundred
# such gaps. So the last programs of a product fetch the beginning of the next matrix while it ends. On an H200 2 MiB
# made a step 0.1 ms shorter, 8 MiB 0.03 ms; fetching beside attention as well only delayed that.
AHEAD_BYTES = 2 << 20
_AHEAD_LINES = 128  # that each of them fetches
_LINE_BYTES = 128  # of the GPU's caches


@triton.jit
def _fetch_ahead(ahead, byte_count, share, LINES: tl.constexpr):
    """Has one share of what a later kernel reads brought into the L2 cache, without waiting for it.

    Args:
        ahead: Where that begins.
        byte_count: How much of it may be fetched: what lies behind is not touched.
        share: Which share, from 0; one below 0 fetches nothing.
        LINES: Cache lines of a share, a power of two.
    """
    if share >= 0:
        place = (share.to(tl.int64) * LINES + tl.arange(0, LINES)) * 128
        place = ahead.to(tl.int64) + tl.minimum(place, byte_count - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [place], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _vector_product(
    rows, norm, values, scales, bias, residual, out, ahead,
    out_size, epsilon, ahead_bytes, ahead_first,
    IN: tl.constexpr, GATED: tl.constexpr, NORMED: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
    ADDED: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """One row times a matrix.

    The row may be normed first: its length is gathered beside the product, and divided out at the end, so that the row
    is read once. GATED: the matrix holds a gate above a value; out = silu(gate) x value. LINES: cache lines that each
    of the last programs fetches ahead; 0 for none.
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
    if LINES > 0:  # all loads of its own are under way: the memory would have nothing to do from here on
        _fetch_ahead(ahead, ahead_bytes, tl.program_id(0) - ahead_first, LINES)
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
    ahead: Tensor | None = None,
    block: tuple[int, int, int] | None = None,
) -> Tensor:
    """Returns one row times a matrix, [1, out]: normed before, gated or added to `residual` after, as asked.

    `ahead` is what the next kernel reads first: its beginning is brought into the cache while this one ends.
    """
    values = weight.values
    rows_out, size_in = values.shape
    size_out = rows_out // 2 if gated else rows_out
    out = torch.empty((1, size_out), device=row.device, dtype=row.dtype)
    block_out, block_in, warps = block or _vector_block(size_in, gated=gated, int8=weight.scales is not None)
    programs = triton.cdiv(size_out, block_out)
    ahead_bytes = 0 if ahead is None else min(AHEAD_BYTES, ahead.numel() * ahead.element_size())
    fetching = min(programs, triton.cdiv(ahead_bytes, _AHEAD_LINES * _LINE_BYTES))
    _vector_product[(programs,)](
        row, norm if norm is not None else row, values, weight.scales if weight.scales is not None else row,
        weight.bias if weight.bias is not None else row, residual if residual is not None else row, out,
        ahead if ahead is not None else row, size_out, epsilon, ahead_bytes, programs - fetching,
        IN=size_in, GATED=gated, NORMED=norm is not None, SCALED=weight.scales is not None,
        BIASED=weight.bias is not None, ADDED=residual is not None,
        BLOCK_OUT=block_out, BLOCK_IN=block_in, LINES=_AHEAD_LINES if fetching else 0, num_warps=warps,
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
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Some rows times a matrix, which is read once for up to BLOCK_ROWS of them."""
    which = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    own = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside, known = own < out_size, which < row_count
    column = tl.arange(0, BLOCK_IN)
    left = rows + which[:, None] * IN + column[None, :]
    right = values + own[None, :].to(tl.int64) * IN + column[:, None]
    upper = values + (own + out_size)[None, :].to(tl.int64) * IN + column[:, None]
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
        ADDED=residual is not None, BLOCK_ROWS=block_rows, BLOCK_OUT=block_out, BLOCK_IN=block_in,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def _few_block(row_count: int, gated: bool) -> tuple[int, int, int, int, int]:
    """Returns rows, outputs and inputs of a program, its warps and stages; chosen by measurement."""
    return max(16, min(64, triton.next_power_of_2(row_count))), 32, 128, 4, 4
