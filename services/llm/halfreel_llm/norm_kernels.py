"""Norms and gates of rows on a GPU.

Knows tensors alone; see `kernels`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,no-any-unimported,untyped-decorator,import-not-found"
# ruff: noqa: N803 - a kernel's arguments are pointers, numbers and constants of the compiler

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


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
