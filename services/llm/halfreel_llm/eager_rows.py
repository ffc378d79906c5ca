"""Rows of a step whose lengths the host knows, with PyTorch's own attention: on a CPU, and for prompts on a GPU.

Knows no reply; writes and reads the slots of the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from halfreel_llm.kv_cache import KvCache


class PromptRows:
    """Tokens that follow one another in one slot."""

    def __init__(self, cache: KvCache, slot: int, begin: int, token_count: int) -> None:
        """Takes the slot, how many tokens it holds already, and how many come now."""
        self._cache, self._slot, self._begin, self._end = cache, slot, begin, begin + token_count
        self.positions = torch.arange(begin, self._end, device=cache.keys.device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        """See `Rows`."""
        keys, values = self._cache.keys[layer, self._slot], self._cache.values[layer, self._slot]
        keys[:, self._begin : self._end] = key.transpose(0, 1)
        values[:, self._begin : self._end] = value.transpose(0, 1)
        whole = self._begin == 0 and window is None
        seen = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None, :, : self._end],
            values[None, :, : self._end],
            attn_mask=None if whole else self._mask(window),
            is_causal=whole,
            enable_gqa=True,
        )
        return seen[0].transpose(0, 1)

    def _mask(self, window: int | None) -> Tensor:
        """Returns what each row sees, [rows, positions], bool; the same for all layers of one window."""
        if window not in self._masks:
            self._masks[window] = visible(self.positions[:, None], self._end, window)
        return self._masks[window]


class ReplyRows:
    """One token each in several slots."""

    def __init__(self, cache: KvCache, slots: list[int], lengths: list[int]) -> None:
        """Takes the slots in rising order, and how many tokens each holds already."""
        self._cache, self._slots, self._longest = cache, slots, max(lengths) + 1
        self.positions = torch.tensor(lengths, device=cache.keys.device)
        self._index = torch.tensor(slots, device=cache.keys.device)
        self._even = len(set(lengths)) == 1
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        """See `Rows`."""
        self._cache.keys[layer, self._index, :, self.positions] = key
        self._cache.values[layer, self._index, :, self.positions] = value
        keys, values = self._cache.rows(layer, self._slots, self._longest)
        count, heads, size = query.shape
        # The query heads that share a key head become rows of it, so that no key is repeated for them.
        seen = F.scaled_dot_product_attention(
            query.view(count, keys.shape[1], -1, size),
            keys,
            values,
            attn_mask=None if self._even and window is None else self._mask(window),
        )
        return seen.reshape(count, heads, size)

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            self._masks[window] = visible(self.positions[:, None, None, None], self._longest, window)
        return self._masks[window]


def visible(positions: Tensor, length: int, window: int | None) -> Tensor:
    """Returns which of the first `length` positions a row at each of `positions` sees."""
    others = torch.arange(length, device=positions.device)
    seen = others <= positions
    return seen if window is None else seen & (others > positions - window)
