"""Runs the network on a GPU: one CUDA graph for each number of rows, replayed while the host hears of the step before.

What a slot holds, was given and picked last lies on the device, so that a step needs nothing of the host but the list
of its slots. Knows no reply; see `Runner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from halfreel_llm.eager_rows import visible
from halfreel_llm.fused_network import FusedNetwork
from halfreel_llm.kv_cache import KvCache
from halfreel_llm.runner import Mask
from halfreel_llm.sampling import SamplingSettings

# A piece of a prompt that nobody else waits for is as large as keeps a cancelled request from waiting longer than
# 50 ms; beside running replies, one that takes about as long as their own step.
_PIECE_ALONE, _PIECE_IN_COMPANY = 1024, 256
_REUSED_TOKENS = 64


@dataclass(frozen=True)
class _Logits:
    values: Tensor
    slots: Tensor


@dataclass(frozen=True)
class _Picked:
    """Tokens on their way to the host."""

    tokens: Tensor
    arrived: Any


class GraphRunner:
    """See `Runner`. The cache's last slot is its own: rows that fill a graph up write there."""

    overlaps = True
    checks = False  # a guess would have to wait for the host, which costs what it might save
    reuse_tokens = _REUSED_TOKENS

    def __init__(
        self, fused: FusedNetwork, cache: KvCache, allowed: Tensor, kernels: Any, *, graphs: bool, processor_count: int
    ) -> None:
        """Takes the network and its cache; with `graphs`, `capture` must be called before the first step.

        Args:
            fused: The network.
            cache: Of one slot more than replies can be written.
            allowed: Which tokens may ever be picked, [vocabulary], bool.
            kernels: The operations; see `kernels`.
            graphs: Whether steps are captured and replayed, or run kernel by kernel.
            processor_count: Of the GPU.
        """
        self._fused, self._cache, self._kernels = fused, cache, kernels
        self._graphs_wanted = graphs
        self._processor_count = processor_count
        self.slot_count = cache.slot_count - 1
        device = self._device = cache.keys.device
        size = cache.slot_count
        words = -(-len(allowed) // 32)
        bits = torch.zeros(words * 32, dtype=torch.int64)
        bits[: len(allowed)] = allowed.cpu()
        packed = (bits.view(words, 32) << torch.arange(32)).sum(1)
        self._allowed = torch.from_numpy(packed.numpy().astype(np.uint32).view(np.int32).copy()).to(device)
        self._masks = torch.zeros((size, words), dtype=torch.int32, device=device)
        self._masked = torch.zeros(size, dtype=torch.int32, device=device)
        self._temperatures = torch.zeros(size, device=device)
        self._top_ps = torch.ones(size, device=device)
        self._top_ks = torch.zeros(size, dtype=torch.int32, device=device)
        self._seeds = torch.zeros(size, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(size, dtype=torch.int64, device=device)
        self._tokens = torch.zeros(size, dtype=torch.int64, device=device)
        self._each = torch.arange(size, device=device)
        self._rows = torch.zeros(size, dtype=torch.int64, device=device)
        self._rows_now: list[int] = []
        self._rows_sent = self._rows
        self._grammars: set[int] = set()
        self._captured: dict[int, tuple[Any, Tensor]] = {}
        self._buckets = [1 << power for power in range((self.slot_count - 1).bit_length())] + [self.slot_count]
        self._buckets = sorted({min(bucket, self.slot_count) for bucket in self._buckets})

    def piece_tokens(self, *, alone: bool) -> int:
        """See `Runner`."""
        return _PIECE_ALONE if alone else _PIECE_IN_COMPANY

    def begin(self, slot: int, sampling: SamplingSettings) -> None:
        """See `Runner`."""
        self._temperatures[slot] = 0.0 if sampling.greedy else sampling.temperature
        self._top_ps[slot] = sampling.top_p
        self._top_ks[slot] = sampling.top_k
        self._seeds[slot] = sampling.seed
        if slot in self._grammars:
            self._grammars.remove(slot)
            self._masked[slot] = 0

    def reuse(self, source: int, slot: int, token_count: int) -> None:
        """See `Runner`."""
        if source != slot:
            self._cache.copy(source, slot, token_count)

    def read(self, slot: int, token_ids: Sequence[int], begin: int, *, last: bool) -> _Logits | None:
        """See `Runner`."""
        with torch.inference_mode():
            rows = _PromptRows(self, slot, begin, len(token_ids))
            hidden = self._fused.forward(self._sent(list(token_ids)), rows)
            self._lengths[slot] = begin + len(token_ids)
            if not last:
                return None
            return _Logits(self._fused.logits(hidden[-1:].contiguous()), self._each[slot : slot + 1])

    def write(self, slots: list[int]) -> _Logits:
        """See `Runner`."""
        bucket = next(each for each in self._buckets if each >= len(slots))
        wanted = slots + [self.slot_count] * (bucket - len(slots))
        with torch.inference_mode():
            if wanted != self._rows_now:
                self._rows_sent = self._sent(wanted)
                self._rows[:bucket].copy_(self._rows_sent)
                self._rows_now = wanted
            if self._graphs_wanted:
                graph, logits = self._captured[bucket]
                graph.replay()
            else:
                logits = self._step(bucket)
            return _Logits(logits[: len(slots)], self._rows_sent[: len(slots)])

    def check(self, slot: int, token_ids: Sequence[int], begin: int, masks: Sequence[Mask | None]) -> list[int]:
        """Never asked for; see `checks`."""
        raise NotImplementedError

    def settle(self, slot: int, length: int, picked: int) -> None:
        """Never asked for; see `checks`."""
        raise NotImplementedError

    def kept(self, logits: _Logits) -> _Logits:
        """See `Runner`."""
        return _Logits(logits.values.clone(), logits.slots)

    def pick(self, logits: _Logits, slots: list[int], masks: Mapping[int, Mask]) -> _Picked:
        """See `Runner`."""
        with torch.inference_mode():
            if masks:
                self._send_masks(masks)
            picked = torch.empty(len(slots), dtype=torch.int64, device=self._device)
            self._kernels.pick(
                logits.values, logits.slots, self._lengths, self._tokens, self._allowed, self._masks, self._masked,
                self._temperatures, self._top_ps, self._top_ks, self._seeds, picked,
            )  # fmt: skip
            if self._device.type != "cuda":
                return _Picked(picked, None)
            tokens = torch.empty(len(slots), dtype=torch.int64, pin_memory=True)
            tokens.copy_(picked, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            return _Picked(tokens, arrived)

    def wait(self, picked: _Picked) -> list[int]:
        """See `Runner`."""
        if picked.arrived is not None:
            picked.arrived.synchronize()
        tokens: list[int] = picked.tokens.tolist()
        return tokens

    def clear(self, slot: int) -> None:
        """See `Runner`."""
        self._cache.clear(slot)

    # Graphs.

    def capture(self) -> None:
        """Captures the step of every number of rows, the largest first, so that the others lie in its memory."""
        if not self._graphs_wanted:
            return
        pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode():
            self._rows.fill_(self.slot_count)
            self._rows_now = []
            for bucket in reversed(self._buckets):
                self._step(bucket)  # compiles its kernels and makes the libraries' workspaces
                torch.cuda.synchronize(self._device)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    logits = self._step(bucket)
                self._captured[bucket] = (graph, logits)
            self._lengths.zero_()

    def release(self) -> None:
        """Drops the graphs, which hold the addresses of weights that are about to leave."""
        self._captured.clear()

    def _step(self, bucket: int) -> Tensor:
        """Runs the tokens picked last of the first rows, and moves their slots on; returns the logits after them."""
        slots = self._rows[:bucket]
        lengths = self._lengths[slots]
        hidden = self._fused.forward(self._tokens[slots], _ReplyRows(self, slots, lengths))
        logits = self._fused.logits(hidden)
        self._lengths[slots] = torch.where(slots < self.slot_count, lengths + 1, 0)
        return logits

    # To the device.

    def _sent(self, numbers: list[int]) -> Tensor:
        """Returns numbers on the device, without waiting for it."""
        sent = torch.tensor(numbers, dtype=torch.int64)
        return sent.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else sent

    def _send_masks(self, masks: Mapping[int, Mask]) -> None:
        staged = torch.from_numpy(np.stack(list(masks.values())))
        if self._device.type == "cuda":
            staged = staged.pin_memory()
        for row, slot in zip(staged, masks, strict=True):
            self._masks[slot, : len(row)].copy_(row, non_blocking=True)
            if slot not in self._grammars:
                self._grammars.add(slot)
                self._masked[slot] = 1


class _ReplyRows:
    """One token each of several slots; see `FusedRows`."""

    def __init__(self, runner: GraphRunner, slots: Tensor, lengths: Tensor) -> None:
        self._runner, self._slots, self._lengths = runner, slots, lengths
        keys = runner._cache.keys.shape[2]
        self._splits = runner._kernels.split_count(len(slots), keys, runner._processor_count)

    def attend(self, layer: int, joined: Tensor, window: int | None) -> Tensor:
        network, cache = self._runner._fused.network, self._runner._cache
        seen: Tensor = self._runner._kernels.attend(
            joined, network.cosines, network.sines, cache.keys[layer], cache.values[layer], self._slots, self._lengths,
            head_count=network.shape.head_count, interleaved=network.shape.interleaved, scaling=network.scaling,
            window=window, splits=self._splits, early=self._runner._fused.early and len(self._slots) == 1,
        )  # fmt: skip
        return seen


class _PromptRows:
    """Tokens that follow one another in one slot; see `FusedRows`."""

    def __init__(self, runner: GraphRunner, slot: int, begin: int, token_count: int) -> None:
        self._runner, self._slot, self._begin, self._end = runner, slot, begin, begin + token_count

    def attend(self, layer: int, joined: Tensor, window: int | None) -> Tensor:
        network, cache = self._runner._fused.network, self._runner._cache
        query = self._runner._kernels.keep_prompt(
            joined, network.cosines, network.sines, cache.keys[layer], cache.values[layer], self._slot, self._begin,
            head_count=network.shape.head_count, interleaved=network.shape.interleaved,
        )  # fmt: skip
        keys = cache.keys[layer, self._slot, :, : self._end]
        values = cache.values[layer, self._slot, :, : self._end]
        return _prompt_attention(query, keys, values, self._begin, network.scaling, window).flatten(1)


def _prompt_attention(
    query: Tensor, keys: Tensor, values: Tensor, begin: int, scaling: float, window: int | None
) -> Tensor:
    """Attends from a prompt's tokens to all up to their own.

    Query and result are [N, heads, head size]; keys and values [key heads, begin + N, head size].
    """
    if query.device.type == "cuda" and window is None:
        # The flash kernel itself: it alone takes "causal" to mean the last rows of a longer past, without a mask.
        seen: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            query.transpose(0, 1)[None], keys[None], values[None], 0.0, True, False, scale=scaling
        )[0]
    else:
        positions = torch.arange(begin, begin + len(query), device=query.device)[:, None]
        seen = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=visible(positions, begin + len(query), window),
            scale=scaling,
            enable_gqa=True,
        )
    return seen[0].transpose(0, 1)
