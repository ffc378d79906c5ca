"""A reply in its slot, and who waits for it. Does not know how replies are written together."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from halfreel.gpu.v1 import gpu_pb2
from halfreel_llm.lookup import Lookup
from halfreel_llm.reply import Finished, Reply, TextDelta, TextRequest
from halfreel_llm.runner import Mask
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.memory import RequestMemory


class Reader(Protocol):
    """Who waits for a reply."""

    token: CancelToken

    def put(self, event: TextDelta) -> None:
        """Takes text.

        Raises:
            SlowReader: Too much lies unread.
        """

    def end(self, finished: Finished | None, error: BaseException | None) -> None:
        """Hears the end: one of the two."""


class Place:
    """A reply in its slot."""

    def __init__(self, request: TextRequest, reader: Reader, reply: Reply, slot: int, memory: RequestMemory) -> None:
        self.request, self.reader, self.reply, self.slot = request, reader, reply, slot
        self.memory = memory
        """The process's peaks from the reply's beginning to its end."""
        self.token_ids = list(request.prompt_ids)
        """The prompt and what was picked; the slot holds the first `held` of them."""
        self.held = 0
        self.reading = True
        """Whether tokens wait to be read, before more can be picked."""
        self.open_picks = 0
        self.rungs: list[str] = []
        self.lookup = Lookup()
        self.prefill_s = 0.0
        self.next_message_s = 0.0
        self.ended = False

    @property
    def forced_only(self) -> bool:
        """Whether what waits to be read is of the reply and not of the prompt."""
        return self.held >= len(self.request.prompt_ids)

    def mask(self, vocabulary_size: int) -> Mask | None:
        """Returns which tokens the grammar lets follow; None where there is none."""
        if self.request.matcher is None:
            return None
        mask = allocate_token_bitmask(1, vocabulary_size)
        fill_next_token_bitmask(self.request.matcher, mask)
        row: Mask = mask[0].view(np.int32)
        return row

    def guess(self, vocabulary_size: int) -> tuple[list[int], list[Mask | None]]:
        """Returns the tokens that the reply may go on with, and the masks after its last token and after each of them.

        The list is empty where nothing is guessed.
        """
        guess = self.lookup.guess(self.token_ids, self.request.max_output_tokens - self.reply.token_count - 1)
        if not guess:
            return [], []
        matcher = self.request.matcher
        masks = [self.mask(vocabulary_size)]
        if matcher is not None:
            consumed = 0
            for token_id in guess:
                if matcher.try_consume_tokens([token_id]) != 1:
                    break
                consumed += 1
                if matcher.is_stopped():  # nothing can follow, so nothing is to be picked after it
                    break
                masks.append(self.mask(vocabulary_size))
            matcher.rollback(consumed)
            guess = guess[: len(masks) - 1]
        return guess, masks + [None] * (1 + len(guess) - len(masks))

    def peaks(self) -> tuple[gpu_pb2.PhasePeak, ...]:
        """Returns the process's peaks in each phase while the reply lived, with the time that it spent in the phase."""
        decode_s = self.reply.last_token_s - self.reply.first_token_s
        seconds = {"prefill": self.prefill_s, "decode": max(decode_s, 1e-9)}
        peaks = {peak.phase: peak for peak in self.memory.phase_peaks if peak.phase in seconds}
        for phase, peak in peaks.items():
            peak.duration.FromNanoseconds(max(1, round(seconds[phase] * 1e9)))
        return tuple(peaks[phase] for phase in seconds if phase in peaks)
