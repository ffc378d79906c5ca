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
from torch import Tensor

from halfreel_llm.fused_network import FusedNetwork
from halfreel_llm.kv_cache import KvCache
from halfreel_llm.runner import Mask
from halfreel_llm.sampling import SamplingSettings

# A piece of a prompt that nobody else waits for is as large as keeps a cancelled request from waiting longer than
# 50 ms. Beside running replies it is so small that it hardly lengthens their step; but the more prompts wait, the more
# the whole gains by large ones: what they wait for is then worth a longer gap of the few that run.
PIECE_TOKENS = 1024
_PIECES_IN_COMPANY = ((0, 128), (4, 256), (16, 512))  # from so many prompts on, so many tokens
_PIECE_BUCKETS = (16, 64, 128, 256, 384, 512, 768, 1024)
_WHERE = 3  # numbers before the tokens of a piece: its slot, what that holds, and how many tokens come
_REUSED_TOKENS = 64
# With fewer rows than these a piece beside them always costs less than both apart, which read all weights twice.
_MANY_ROWS = 32
# Noise decides nothing, or a restart could give other roundings.
_DEARER_RATIO = 1.1


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
    reuse_tokens = _REUSED_TOKENS

    def __init__(
        self,
        fused: FusedNetwork,
        cache: KvCache,
        allowed: Tensor,
        kernels: Any,
        *,
        graphs: bool,
        processor_count: int,
        piece_tokens: int = PIECE_TOKENS,
    ) -> None:
        """Takes the network and its cache; with `graphs`, `capture` must be called before the first step.

        Args:
            fused: The network.
            cache: Of one slot more than replies can be written.
            allowed: Which tokens may ever be picked, [vocabulary], bool.
            kernels: The operations; see `kernels`.
            graphs: Whether steps are captured and replayed, or run kernel by kernel.
            processor_count: Of the GPU.
            piece_tokens: Tokens of a prompt that are read at once at most: the fewer, the less memory graphs hold.
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
        self._piece_tokens = piece_tokens
        self._pieces = [each for each in _PIECE_BUCKETS if each <= piece_tokens]
        self._company = [(crowd, min(tokens, piece_tokens)) for crowd, tokens in _PIECES_IN_COMPANY]
        self._prompt = torch.zeros(_WHERE + piece_tokens, dtype=torch.int64, device=device)
        self._captured: dict[tuple[int, int], tuple[Any, Tensor, Tensor]] = {}
        # Pieces and rows that take longer together than one after the other; None before that was measured.
        self._apart: set[tuple[int, int]] | None = None
        self._buckets = [1 << power for power in range((self.slot_count - 1).bit_length())] + [self.slot_count]
        self._buckets = sorted({min(bucket, self.slot_count) for bucket in self._buckets})

    def piece_tokens(self, *, alone: bool, prompts: int) -> int:
        """See `Runner`."""
        if alone:
            return self._piece_tokens
        return max(tokens for crowd, tokens in self._company if prompts >= crowd)

    def mixes(self, row_count: int, token_count: int) -> bool:
        """See `Runner`."""
        return not self._apart or (self._beside(token_count), self._bucket(row_count)) not in self._apart

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
        _, logits = self._run(self._piece_bucket(len(token_ids)), [], slot, token_ids, begin)
        return _Logits(logits, self._each[slot : slot + 1]) if last else None

    def both(
        self, slots: list[int], slot: int, token_ids: Sequence[int], begin: int, *, last: bool
    ) -> tuple[_Logits, _Logits | None]:
        """See `Runner`."""
        rows, logits = self._run(self._beside(len(token_ids)), slots, slot, token_ids, begin)
        return rows, _Logits(logits, self._each[slot : slot + 1]) if last else None

    def write(self, slots: list[int]) -> _Logits:
        """See `Runner`."""
        rows, _ = self._run(0, slots, 0, (), 0)
        return rows

    def _run(
        self, piece: int, slots: list[int], slot: int, token_ids: Sequence[int], begin: int
    ) -> tuple[_Logits, Tensor]:
        """Runs a piece of a prompt of up to `piece` tokens, and the tokens picked last of some slots."""
        if len(token_ids) > piece:  # a graph would read past its rows, and with that the process would be lost
            raise ValueError(f"a piece of {len(token_ids)} tokens; the step takes {piece}")
        bucket = self._bucket(len(slots)) if slots else 0
        with torch.inference_mode():
            if slots:
                wanted = slots + [self.slot_count] * (bucket - len(slots))
                if wanted != self._rows_now:
                    self._rows_sent = self._sent(wanted)
                    self._rows[:bucket].copy_(self._rows_sent)
                    self._rows_now = wanted
            if piece:
                sent = self._sent([slot, begin, len(token_ids), *token_ids])
                self._prompt[: len(sent)].copy_(sent)
            if self._graphs_wanted:
                graph, rows, logits = self._captured[piece, bucket]
                graph.replay()
            else:
                rows, logits = self._step(piece, bucket)
            return _Logits(rows[: len(slots)], self._rows_sent[: len(slots)]), logits

    def _piece_bucket(self, count: int) -> int:
        return next(each for each in self._pieces if each >= count)

    def _beside(self, token_count: int) -> int:
        return next(tokens for _, tokens in self._company if tokens >= token_count)

    def _bucket(self, row_count: int) -> int:
        return next(each for each in self._buckets if each >= row_count)

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
        """Captures every kind of step: numbers of rows, pieces of a prompt, and a piece beside any number of rows.

        The largest come first, so that the others lie in their memory.
        """
        if not self._graphs_wanted:
            return
        pool = torch.cuda.graph_pool_handle()
        alone = [(piece, 0) for piece in self._pieces]
        pieces = {0, *(tokens for _, tokens in self._company)}
        kinds = alone + [(piece, rows) for rows in self._buckets for piece in pieces]
        with torch.inference_mode():
            self._rows.fill_(self.slot_count)
            self._rows_now = []
            self._prompt.zero_()
            self._prompt[0], self._prompt[2] = self.slot_count, 1
            kinds.sort(key=sum, reverse=True)
            # Each compiles its kernels and makes the libraries' workspaces, before the first graph takes memory: what
            # such a step holds, capturing gives back.
            for piece, rows in kinds:
                self._step(piece, rows)
            torch.cuda.synchronize(self._device)
            for piece, rows in kinds:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    made = self._step(piece, rows)
                self._captured[piece, rows] = (graph, *made)
            if self._apart is None:
                self._apart = {kind for kind in kinds if self._is_dearer(*kind)}
            self._lengths.zero_()

    def _is_dearer(self, piece: int, rows: int) -> bool:
        """Whether a piece and many rows take longer together than one after the other.

        They do where the products' kernels fill their tiles badly with the sum of both.
        """
        if not piece or rows < _MANY_ROWS:
            return False
        apart_ms = self._replay_ms(piece, 0) + self._replay_ms(0, rows)
        return self._replay_ms(piece, rows) > _DEARER_RATIO * apart_ms

    def _replay_ms(self, piece: int, rows: int) -> float:
        graph, taken = self._captured[piece, rows][0], []
        for _ in range(3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end))
        return min(taken)

    def release(self) -> None:
        """Drops the graphs, which hold the addresses of weights that are about to leave."""
        self._captured.clear()

    def _step(self, piece: int, rows: int) -> tuple[Tensor, Tensor]:
        """Runs a piece of a prompt and the tokens picked last of the first rows, and moves their slots on.

        Returns:
            The logits after each row, and after the last token of the piece.
        """
        slots = self._rows[:rows]
        lengths = self._lengths[slots]
        where = self._prompt[:_WHERE]
        ids = self._tokens[slots]
        if piece:
            ids = torch.cat((self._prompt[_WHERE : _WHERE + piece], ids))
        hidden = self._fused.forward(ids, _StepRows(self, piece, where, slots, lengths))
        logits, piece_logits = hidden, hidden
        if rows:
            logits = self._fused.logits(hidden[piece:])
            self._lengths[slots] = torch.where(slots < self.slot_count, lengths + 1, 0)
        if piece:
            piece_logits = self._fused.logits(hidden.index_select(0, where[2:] - 1))
            self._lengths[where[:1]] = where[1:2] + where[2:]
        return logits, piece_logits

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


class _StepRows:
    """A piece of a prompt, then one token each of several slots; see `FusedRows`."""

    def __init__(self, runner: GraphRunner, piece: int, where: Tensor, slots: Tensor, lengths: Tensor) -> None:
        self._runner, self._piece, self._where, self._slots, self._lengths = runner, piece, where, slots, lengths
        keys = runner._cache.keys.shape[2]
        self._splits = runner._kernels.split_count(max(1, len(slots)), keys, runner._processor_count)

    def attend(self, layer: int, joined: Tensor, window: int | None) -> Tensor:
        prompt, rows = joined[: self._piece], joined[self._piece :]
        if not self._piece:
            return self._attend_rows(layer, rows, window)
        if not len(self._slots):
            return self._attend_prompt(layer, prompt, window)
        return torch.cat((self._attend_prompt(layer, prompt, window), self._attend_rows(layer, rows, window)))

    def _attend_rows(self, layer: int, joined: Tensor, window: int | None) -> Tensor:
        network, cache = self._runner._fused.network, self._runner._cache
        seen: Tensor = self._runner._kernels.attend(
            joined, network.cosines, network.sines, cache.keys[layer], cache.values[layer], self._slots, self._lengths,
            head_count=network.shape.head_count, interleaved=network.shape.interleaved, scaling=network.scaling,
            window=window, splits=self._splits,
        )  # fmt: skip
        return seen

    def _attend_prompt(self, layer: int, joined: Tensor, window: int | None) -> Tensor:
        network, cache, kernels = self._runner._fused.network, self._runner._cache, self._runner._kernels
        keys, values = cache.keys[layer], cache.values[layer]
        query = kernels.keep_prompt(
            joined, network.cosines, network.sines, keys, values, self._where,
            head_count=network.shape.head_count, interleaved=network.shape.interleaved,
        )  # fmt: skip
        seen: Tensor = kernels.attend_prompt(query, keys, values, self._where, scaling=network.scaling, window=window)
        return seen
