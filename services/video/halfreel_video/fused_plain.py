"""The operations of `fused_kernels` in PyTorch's words, for any device and arithmetic, by definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def group_norm(
    hidden: Tensor, norm: Any, *, frames: int = 1, silu: bool = False, shift: Tensor | None = None
) -> Tensor:
    """As the kernel of this name."""
    wide = hidden.float()
    if shift is not None:
        wide = wide + shift.float()[:, :, None, None]
    images, channels, height, width = wide.shape
    clips = wide.reshape(images // frames, frames, channels, height * width).transpose(1, 2)
    normed = functional.group_norm(clips, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)
    normed = normed.transpose(1, 2).reshape(images, channels, height, width)
    return _like(functional.silu(normed) if silu else normed, hidden)


def blended(hidden: Tensor, other: Tensor, *, shift: Tensor, weight: Tensor | None = None) -> Tensor:
    """As the kernel of this name."""
    added = other.float() if weight is None else other.float() * weight.float()
    return _like(hidden.float() + (added + shift.float()[:, :, None, None]), hidden)


def layer_norm(hidden: Tensor, norm: Any, *, shift: Tensor | None = None, other: Tensor | None = None) -> Tensor:
    """As the kernel of this name."""
    wide = hidden.float()
    if other is not None:
        wide = wide + other.float()
    if shift is not None:
        wide = (wide.reshape(len(shift), -1, wide.shape[1]) + shift.float()[:, None]).flatten(0, 1)
    normed = functional.layer_norm(wide, wide.shape[1:], norm.weight.float(), norm.bias.float(), norm.eps)
    return normed.to(hidden.dtype)


def gated(both: Tensor) -> Tensor:
    """As the kernel of this name."""
    values, gate = both.chunk(2, dim=1)
    return (values.float() * functional.gelu(gate.float())).to(both.dtype)


def attend_in_time(joined: Tensor, *, clips: int, frames: int, heads: int) -> Tensor:
    """As the kernel of this name."""
    parts = joined.reshape(clips, frames, -1, 3, heads, joined.shape[1] // (3 * heads))
    query, key, value = parts.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # each (clips x pixels, heads, frames, size)
    seen = functional.scaled_dot_product_attention(query, key, value)
    result: Tensor = seen.unflatten(0, (clips, -1)).permute(0, 3, 1, 2, 4).reshape(len(joined), -1)
    return result


def _like(values: Tensor, hidden: Tensor) -> Tensor:
    """In its arithmetic, with channels last in memory."""
    return values.to(hidden.dtype).contiguous(memory_format=torch.channels_last)
