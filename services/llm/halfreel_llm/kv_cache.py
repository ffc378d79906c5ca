"""The keys and values of the running replies: one slot each, of the whole context, for every layer.

Knows no reply: whoever holds a slot knows how much of it is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfreel_llm.network import Shape


def bytes_per_token(shape: Shape, dtype: torch.dtype) -> int:
    """Returns what one token takes in the cache."""
    return 2 * shape.layer_count * shape.key_head_count * shape.head_size * dtype.itemsize


class KvCache:
    """Slots 0 to `slot_count` - 1."""

    def __init__(
        self, shape: Shape, slot_count: int, context_token_count: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Takes the memory; on a CPU the system gives each page only when it is first written.

        It is zero: what a row does not attend to is multiplied by 0, and must be a number for that.
        """
        self.slot_count = slot_count
        self.context_token_count = context_token_count
        size = (shape.layer_count, slot_count, shape.key_head_count, context_token_count, shape.head_size)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        """[layer, slot, key head, position, head size]."""
        self.values = torch.zeros(size, device=device, dtype=dtype)

    @property
    def byte_count(self) -> int:
        """Bytes of all slots."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def copy(self, source: int, target: int, token_count: int) -> None:
        """Copies the first tokens of one slot to another."""
        for part in (self.keys, self.values):
            part[:, target, :, :token_count] = part[:, source, :, :token_count]

    def clear(self, slot: int) -> None:
        """Makes a slot zero again, after numbers in it that are not finite."""
        self.keys[:, slot] = self.values[:, slot] = 0

    def rows(self, layer: int, slots: list[int], length: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values of the slots' first positions, each [slots, key heads, length, head size].

        They are views where the slots follow one another.
        """
        keys, values = self.keys[layer], self.values[layer]
        first, last = slots[0], slots[-1]
        if slots == list(range(first, last + 1)):
            return keys[first : last + 1, :, :length], values[first : last + 1, :, :length]
        return keys[slots, :, :length], values[slots, :, :length]
