"""The seam between the server and the model: one request in, text as it is written out.

Knows no gRPC and no queue; it runs on the one thread that owns the model, one reply at a time, and another engine can
stand in its place behind `TextModel.generate`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from halfreel.gpu.v1 import gpu_pb2
from halfreel_llm.sampling import Sampler
from halfreel_llm.stop_strings import StopStrings
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import Internal
from halfreel_runtime.memory import MemoryMonitor

# Tokens of a prompt in one step, between two looks at the cancel token. 512 of them take ChatGLM3-6B 21 ms on an H200
# and minutes on a small CPU, where so long a silence would count as a stall.
_PREFILL_TOKENS = {"cuda": 512, "cpu": 64}
_MASK_BITS = 32  # of each word of llguidance's mask


@dataclass(frozen=True)
class TextRequest:
    """One reply to write; every value is within its limits."""

    request_id: str
    prompt_ids: tuple[int, ...]
    max_output_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: tuple[str, ...] = ()
    matcher: LLMatcher | None = None
    """The grammar the reply must follow; used up by the reply."""


class FinishReason(Enum):
    """Why a reply ended."""

    END_OF_TEXT = auto()
    LENGTH = auto()
    STOP_STRING = auto()


@dataclass(frozen=True)
class TextDelta:
    """More of the reply: whole characters, and the tokens they took."""

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


class TextModel:
    """A causal language model with its tokenizer, on its device."""

    def __init__(self, model: PreTrainedModel, tokenizer: TextTokenizer, memory: MemoryMonitor) -> None:
        """Takes the loaded model."""
        self._model = model
        self._tokenizer = tokenizer
        self._memory = memory
        self._device = model.device
        self._prefill_tokens = _PREFILL_TOKENS[model.device.type]
        self._vocabulary_size: int = model.config.vocab_size
        self._sampled = torch.zeros(self._vocabulary_size, dtype=torch.bool)
        self._sampled[sorted(tokenizer.text_ids | tokenizer.stop_ids)] = True
        self._sampled = self._sampled.to(self._device)
        self._bits = torch.arange(_MASK_BITS, dtype=torch.int32, device=self._device)

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic."""
        return self._model.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    @property
    def parameter_count(self) -> int:
        """Parameters of the model, shared ones counted once."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on the device."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self._model.parameters())

    @property
    def architecture(self) -> str:
        """The name of the model's class."""
        return type(self._model).__name__

    def generate(self, request: TextRequest, cancel: CancelToken) -> Iterator[TextDelta | Finished]:
        """Writes one reply; its phases are "prefill" and "decode".

        Args:
            request: What to write; prompt and output together fit the model's context.
            cancel: Looked at before every token and every piece of the prompt.

        Yields:
            `TextDelta`s, none empty, then one `Finished`.

        Raises:
            Cancelled: The token was cancelled.
            Internal: The model's numbers are not finite.
        """
        reply = _Reply(request, self._tokenizer)
        with self._memory.request(request.request_id) as usage:
            cache = DynamicCache(config=self._model.config)
            with self._memory.phase("prefill"):
                logits = self._prefill(request.prompt_ids, cache, cancel)
            with self._memory.phase("decode"):
                yield from self._decode(request, reply, logits, cache, cancel)
        yield reply.finished(tuple(usage.phase_peaks))

    def warm_up(self, context_token_count: int) -> None:
        """Runs every kind of step once, so that the first request pays for no kernel selection or workspace."""
        prompt = (min(self._tokenizer.text_ids),) * max(1, min(self._prefill_tokens, context_token_count - 2))
        for temperature in (0.0, 1.0):
            request = TextRequest("warm-up", prompt, 2, temperature=temperature, top_p=0.9, top_k=0, seed=0)
            for _ in self.generate(request, CancelToken()):
                pass

    def _prefill(self, prompt_ids: tuple[int, ...], cache: DynamicCache, cancel: CancelToken) -> Tensor:
        """Returns the logits after the prompt, [vocabulary]."""
        for begin in range(0, len(prompt_ids), self._prefill_tokens):
            cancel.raise_if_cancelled()
            logits = self._forward(prompt_ids[begin : begin + self._prefill_tokens], cache)
            cancel.beat()
        return logits

    def _decode(
        self, request: TextRequest, reply: _Reply, logits: Tensor, cache: DynamicCache, cancel: CancelToken
    ) -> Iterator[TextDelta]:
        sampler = Sampler(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            device=self._device,
        )
        while True:
            cancel.raise_if_cancelled()
            token_id = sampler.pick(logits, self._allowed(request.matcher))
            delta = reply.push(token_id)
            cancel.beat()
            if delta is not None:
                yield delta
            if reply.reason is not None:
                return
            logits = self._forward((token_id,), cache)

    def _forward(self, token_ids: tuple[int, ...], cache: DynamicCache) -> Tensor:
        """Returns the logits after these tokens, [vocabulary]; the cache grows by them."""
        with torch.inference_mode():
            input_ids = torch.tensor([token_ids], device=self._device)
            output = self._model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits: Tensor = output.logits[0, -1]
        return logits

    def _allowed(self, matcher: LLMatcher | None) -> Tensor:
        """Returns which tokens may come next, [vocabulary], bool."""
        if matcher is None:
            return self._sampled
        mask = allocate_token_bitmask(1, self._vocabulary_size)
        fill_next_token_bitmask(matcher, mask)
        words = torch.from_numpy(mask[0].view(np.int32)).to(self._device)
        # Unpacked here: llguidance's own kernel is compiled at run time and needs a C++ compiler.
        allowed = ((words[:, None] >> self._bits) & 1).bool().flatten()[: self._vocabulary_size]
        return allowed & self._sampled


class _Reply:
    """The reply being written: its text, its end, its times."""

    def __init__(self, request: TextRequest, tokenizer: TextTokenizer) -> None:
        self._request = request
        self._stop_ids = tokenizer.stop_ids
        self._stream = tokenizer.stream()
        self._stop = StopStrings(request.stop)
        self._token_count = 0
        self._shown_count = 0
        self._started_s = time.monotonic()
        self._first_token_s = self._last_token_s = self._started_s
        self.reason: FinishReason | None = None

    def push(self, token_id: int) -> TextDelta | None:
        """Takes one token; returns the text that it lets out and sets `reason` where it is the last."""
        self._last_token_s = time.monotonic()
        if self._token_count == 0:
            self._first_token_s = self._last_token_s
        if token_id in self._stop_ids:
            self.reason = FinishReason.END_OF_TEXT
            return self._delta(self._stop.flush())
        self._token_count += 1
        text = self._stop.push(self._stream.push(token_id))
        if self._stop.met:
            self.reason = FinishReason.STOP_STRING
            return self._delta(text)
        if self._matched(token_id):
            self.reason = FinishReason.END_OF_TEXT
        elif self._token_count == self._request.max_output_tokens:
            self.reason = FinishReason.LENGTH
        return self._delta(text + self._stop.flush() if self.reason else text)

    def finished(self, phase_peaks: tuple[gpu_pb2.PhasePeak, ...]) -> Finished:
        """Returns the summary; the reply is over."""
        assert self.reason is not None
        return Finished(
            self.reason, self._token_count, self._started_s, self._first_token_s, self._last_token_s, phase_peaks
        )

    def _matched(self, token_id: int) -> bool:
        """Moves the grammar on; returns whether it accepts no more text, so that the reply is complete."""
        matcher = self._request.matcher
        if matcher is None:
            return False
        if not matcher.consume_token(token_id) or matcher.is_error():
            raise Internal("the grammar of the JSON schema failed", reason="GRAMMAR_FAILED")
        return matcher.is_stopped()

    def _delta(self, text: str) -> TextDelta | None:
        if not text:
            return None
        delta = TextDelta(text, self._token_count - self._shown_count)
        self._shown_count = self._token_count
        return delta
