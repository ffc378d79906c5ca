"""The operations of `halfreel_llm.kernels` in PyTorch's words, on any device and in any arithmetic, by definition."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halfreel_llm.eager_rows import visible
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.sampling import pick as pick_rows
from halfreel_llm.weight import Weight


def normed(hidden: Tensor, norm: Tensor, epsilon: float, delta: Tensor | None = None) -> Tensor:
    if delta is not None:
        hidden += delta
    wide = hidden.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(hidden.dtype) * norm


def gated(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def few_products(rows: Tensor, weight: Weight) -> Tensor:
    product: Tensor = weight(rows)
    return product


def vector_product(
    row: Tensor,
    weight: Weight,
    *,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    residual: Tensor | None = None,
    gated: bool = False,
    ahead: Tensor | None = None,
) -> Tensor:
    product: Tensor = weight(row if norm is None else normed(row, norm, epsilon))
    if gated:
        gate, up = product.chunk(2, dim=-1)
        product = F.silu(gate) * up
    return product if residual is None else product + residual


def split_count(row_count: int, key_head_count: int, processor_count: int) -> int:
    return 1


def _turned(heads: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    cosine, sine = cosines[positions, None], sines[positions, None]
    size = 2 * cosine.shape[-1]
    turning, still = heads[..., :size], heads[..., size:]
    first, second = (turning[..., 0::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    together = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat((together, still), dim=-1)


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
    key_count = keys.shape[1]
    query, key, value = joined.split([head_count, key_count, key_count], dim=1)
    query = _turned(query, cosines, sines, lengths, interleaved)
    keys[slots, :, lengths] = _turned(key, cosines, sines, lengths, interleaved)
    values[slots, :, lengths] = value
    seen = F.scaled_dot_product_attention(
        query.view(len(joined), key_count, -1, query.shape[-1]),
        keys[slots],
        values[slots],
        attn_mask=visible(lengths[:, None, None, None], keys.shape[2], window),
        scale=scaling,
    )
    return seen.reshape(len(joined), -1)


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
    slot, begin, count = where.tolist()
    filling, joined = len(joined) - count, joined[:count]
    positions = torch.arange(begin, begin + count)
    query, key, value = joined.split([head_count, keys.shape[1], keys.shape[1]], dim=1)
    keys[slot, :, positions] = _turned(key, cosines, sines, positions, interleaved).transpose(0, 1)
    values[slot, :, positions] = value.transpose(0, 1)
    return F.pad(_turned(query, cosines, sines, positions, interleaved), (0, 0, 0, 0, 0, filling))


def attend_prompt(
    query: Tensor, keys: Tensor, values: Tensor, where: Tensor, *, scaling: float, window: int | None
) -> Tensor:
    slot, begin, count = where.tolist()
    seen = F.scaled_dot_product_attention(
        query[:count].transpose(0, 1)[None],
        keys[None, slot, :, : begin + count],
        values[None, slot, :, : begin + count],
        attn_mask=visible(torch.arange(begin, begin + count)[:, None], begin + count, window),
        scale=scaling,
        enable_gqa=True,
    )
    return F.pad(seen[0].transpose(0, 1).flatten(1), (0, 0, 0, len(query) - count))


def pick(logits: Tensor, slots: Tensor, lengths: Tensor, tokens: Tensor, *rest: Tensor) -> None:
    allowed, masks, masked, temperatures, top_ps, top_ks, seeds, picked = rest
    size = logits.shape[1]
    rows = [int(slot) for slot in slots]
    may = unpacked(allowed, size).repeat(len(rows), 1)
    for row, slot in enumerate(rows):
        if masked[slot]:
            may[row] &= unpacked(masks[slot], size)
    columns: list[Any] = [each[slots].tolist() for each in (temperatures, top_ps, top_ks, seeds)]
    settings = [SamplingSettings(*each) for each in zip(*columns, strict=True)]
    picked.copy_(torch.tensor(pick_rows(logits, settings, lengths[slots].tolist(), may)))
    tokens[slots] = picked.clamp_min(0)


def unpacked(words: Tensor, size: int) -> Tensor:
    return ((words[:, None] >> torch.arange(32)) & 1).bool().flatten()[:size]
