"""A reply while it is written: its text, its grammar, its end, its times.

Knows no model and no slot: it is given tokens, one after another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from llguidance import LLMatcher

from halfreel.gpu.v1 import gpu_pb2
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.stop_strings import StopStrings
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_runtime.errors import Internal


@dataclass(frozen=True)
class TextRequest:
    """One reply to write; every value is within its limits."""

    request_id: str
    prompt_ids: tuple[int, ...]
    max_output_tokens: int
    sampling: SamplingSettings
    stop: tuple[str, ...] = ()
    matcher: LLMatcher | None = None
    """The grammar the reply must follow; used up by the reply."""
    predicted_bytes: Mapping[str, int] = field(default_factory=dict)
    """What its plan expects the allocator to hold in each phase, by the phase's name."""


class FinishReason(Enum):
    """Why a reply ended."""

    END_OF_TEXT = auto()
    LENGTH = auto()
    STOP_STRING = auto()


class TextDelta(NamedTuple):
    """More of the reply: whole characters, and the tokens they took. Made for every token, so no dataclass."""

    text: str
    token_count: int


@dataclass(frozen=True)
class Finished:
    """The end of the reply, and what it took."""

    reason: FinishReason
    output_token_count: int
    started_s: float
    """On the clock of `time.monotonic`, as the next two."""
    first_token_s: float
    last_token_s: float
    phase_peaks: tuple[gpu_pb2.PhasePeak, ...]
    cached_prompt_token_count: int = 0
    forced_token_count: int = 0
    speculated_token_count: int = 0
    rungs: tuple[str, ...] = ()


class Reply:
    """The reply being written."""

    def __init__(
        self, request: TextRequest, tokenizer: TextTokenizer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begins a reply."""
        self._matcher = request.matcher
        self._max_output_tokens = request.max_output_tokens
        self._clock = clock
        self._stop_ids = tokenizer.stop_ids
        self._stream = tokenizer.stream()
        self._stop = StopStrings(request.stop) if request.stop else None
        self._text = ""
        self._shown_count = 0
        self.token_count = 0
        self.forced_count = 0
        self.speculated_count = 0
        self.cached_prompt_count = 0
        self.started_s = clock()
        self.first_token_s = self.last_token_s = self.started_s
        self.reason: FinishReason | None = None

    def push(self, token_id: int) -> None:
        """Takes one token, and sets `reason` where it is the last.

        Raises:
            Internal: The grammar does not know the token (reason GRAMMAR_FAILED).
        """
        self.last_token_s = self._clock()
        if self.token_count == 0:
            self.first_token_s = self.last_token_s
        if token_id in self._stop_ids:
            self._end(FinishReason.END_OF_TEXT)
            return
        self.token_count += 1
        text = self._stream.push(token_id)
        if self._stop is not None:
            text = self._stop.push(text)
            if self._stop.met:
                self._text += text
                self.reason = FinishReason.STOP_STRING
                return
        self._text += text
        if self._matcher is not None and self._matched(self._matcher, token_id):
            self._end(FinishReason.END_OF_TEXT)
        elif self.token_count == self._max_output_tokens:
            self._end(FinishReason.LENGTH)

    def take(self) -> TextDelta | None:
        """Returns the text that came since it was last taken; None where there is none."""
        if not self._text:
            return None
        delta = TextDelta(self._text, self.token_count - self._shown_count)
        self._text, self._shown_count = "", self.token_count
        return delta

    def finished(self, phase_peaks: tuple[gpu_pb2.PhasePeak, ...], rungs: tuple[str, ...]) -> Finished:
        """Returns the summary; the reply is over."""
        assert self.reason is not None
        return Finished(
            self.reason,
            self.token_count,
            self.started_s,
            self.first_token_s,
            self.last_token_s,
            phase_peaks,
            self.cached_prompt_count,
            self.forced_count,
            self.speculated_count,
            rungs,
        )

    def _end(self, reason: FinishReason) -> None:
        """Ends the reply with all its text."""
        self.reason = reason
        if self._stop is not None:
            self._text += self._stop.flush()

    def _matched(self, matcher: LLMatcher, token_id: int) -> bool:
        """Moves the grammar on; returns whether it accepts no more text, so that the reply is complete."""
        if not matcher.consume_token(token_id) or matcher.is_error():
            raise Internal("the grammar of the JSON schema failed", reason="GRAMMAR_FAILED")
        return matcher.is_stopped()
