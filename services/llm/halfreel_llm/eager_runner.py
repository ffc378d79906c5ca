"""Runs the network step by step in PyTorch, each finished when its method returns: the way of a CPU.

Knows no reply; see `Runner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from halfreel_llm.eager_rows import PromptRows, ReplyRows
from halfreel_llm.kv_cache import KvCache
from halfreel_llm.network import Network
from halfreel_llm.runner import Mask
from halfreel_llm.sampling import SamplingSettings, pick

# Tokens of a prompt in one step, between two looks at the running replies and the cancel tokens: 512 take a model of
# some billions of parameters minutes on a small CPU, where so long a silence would count as a stall.
_PIECE_TOKENS = 64
_GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, seed=0)


class EagerRunner:
    """See `Runner` and `GuessChecker`."""

    overlaps = False
    reuse_tokens = _PIECE_TOKENS

    def __init__(self, network: Network, cache: KvCache, allowed: Tensor) -> None:
        """Takes the network, its cache, and which tokens may ever be picked, [vocabulary], bool."""
        self._network, self._cache = network, cache
        self._allowed = allowed[None]
        self.slot_count = cache.slot_count
        self._sampling = [_GREEDY] * cache.slot_count
        self._lengths = [0] * cache.slot_count
        self._picked = [0] * cache.slot_count
        self._bits = torch.arange(32, dtype=torch.int32, device=allowed.device)

    def piece_tokens(self, *, alone: bool, prompts: int) -> int:
        """See `Runner`; the same alone and in company, so that a prompt is read alike."""
        return _PIECE_TOKENS

    def mixes(self, row_count: int, token_count: int) -> bool:
        """See `Runner`: the pieces would only be run one after another."""
        return False

    def begin(self, slot: int, sampling: SamplingSettings) -> None:
        """See `Runner`."""
        self._sampling[slot] = sampling

    def reuse(self, source: int, slot: int, token_count: int) -> None:
        """See `Runner`."""
        if source != slot:
            self._cache.copy(source, slot, token_count)

    def read(self, slot: int, token_ids: Sequence[int], begin: int, *, last: bool) -> Tensor | None:
        """See `Runner`."""
        with torch.inference_mode():
            ids = torch.tensor(token_ids, device=self._allowed.device)
            hidden = self._network.forward(ids, PromptRows(self._cache, slot, begin, len(token_ids)))
            self._lengths[slot] = begin + len(token_ids)
            return self._network.logits(hidden[-1:]) if last else None

    def write(self, slots: list[int]) -> Tensor:
        """See `Runner`."""
        with torch.inference_mode():
            ids = torch.tensor([self._picked[slot] for slot in slots], device=self._allowed.device)
            rows = ReplyRows(self._cache, slots, [self._lengths[slot] for slot in slots])
            logits = self._network.logits(self._network.forward(ids, rows))
        for slot in slots:
            self._lengths[slot] += 1
        return logits

    def both(
        self, slots: list[int], slot: int, token_ids: Sequence[int], begin: int, *, last: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `Runner`."""
        return self.write(slots), self.read(slot, token_ids, begin, last=last)

    def check(self, slot: int, token_ids: Sequence[int], begin: int, masks: Sequence[Mask | None]) -> list[int]:
        """See `GuessChecker`."""
        count = len(token_ids)
        with torch.inference_mode():
            ids = torch.tensor(token_ids, device=self._allowed.device)
            logits = self._network.logits(self._network.forward(ids, PromptRows(self._cache, slot, begin, count)))
        allowed = self._allowed
        if any(mask is not None for mask in masks):
            allowed = allowed.repeat(count, 1)
            for row, mask in enumerate(masks):
                if mask is not None:
                    allowed[row] &= self._unpacked(mask)
        return pick(logits, [self._sampling[slot]] * count, range(begin + 1, begin + count + 1), allowed)

    def settle(self, slot: int, length: int, picked: int) -> None:
        """See `GuessChecker`."""
        self._lengths[slot], self._picked[slot] = length, picked

    def kept(self, logits: Tensor) -> Tensor:
        """See `Runner`."""
        return logits

    def pick(self, logits: Tensor, slots: list[int], masks: Mapping[int, Mask]) -> list[int]:
        """See `Runner`."""
        allowed = self._allowed
        if masks:
            allowed = allowed.repeat(len(slots), 1)
            for row, slot in enumerate(slots):
                if slot in masks:
                    allowed[row] &= self._unpacked(masks[slot])
        picked = pick(
            logits, [self._sampling[slot] for slot in slots], [self._lengths[slot] for slot in slots], allowed
        )
        for slot, token_id in zip(slots, picked, strict=True):
            self._picked[slot] = token_id
        return picked

    def wait(self, picked: list[int]) -> list[int]:
        """See `Runner`."""
        return picked

    def clear(self, slot: int) -> None:
        """See `Runner`."""
        self._cache.clear(slot)

    def _unpacked(self, mask: Mask) -> Tensor:
        # Unpacked here: llguidance's own kernel is compiled at run time and needs a C++ compiler.
        words = torch.from_numpy(mask.view(np.int32)).to(self._bits.device)
        return ((words[:, None] >> self._bits) & 1).bool().flatten()[: self._allowed.shape[1]]
