"""The seam between the server and the model: requests in, text as it is written out.

Knows no gRPC and no queue; all of it runs on the one thread that owns the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from halfreel_llm.batch import Batch
from halfreel_llm.kv_cache import bytes_per_token
from halfreel_llm.network import Network
from halfreel_llm.reply import Finished, FinishReason, TextDelta, TextRequest
from halfreel_llm.runners import make_runner
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.memory import MemoryMonitor

__all__ = ["FinishReason", "Finished", "TextDelta", "TextModel", "TextRequest"]


class TextModel:
    """A causal language model with its tokenizer and the slots of its replies, on its device."""

    def __init__(
        self,
        network: Network,
        tokenizer: TextTokenizer,
        memory: MemoryMonitor,
        *,
        slot_count: int,
        context_token_count: int,
        small_pieces: bool = False,
    ) -> None:
        """Takes the network, and makes the slots.

        Args:
            network: With its weights on its device.
            tokenizer: The model's.
            memory: Told of the phases.
            slot_count: Replies that can be written at once.
            context_token_count: Tokens that prompt and reply may have together.
            small_pieces: Whether a GPU reads prompts in small pieces, for there is little memory beside the slots.
        """
        self.network = network
        self._tokenizer = tokenizer
        self._context_token_count = context_token_count
        self.slot_count = slot_count
        allowed = torch.zeros(network.shape.vocabulary_size, dtype=torch.bool)
        allowed[sorted(tokenizer.text_ids | tokenizer.stop_ids)] = True
        self.runner, self.cache = make_runner(
            network,
            allowed,
            slot_count=slot_count,
            context_token_count=context_token_count,
            small_pieces=small_pieces,
        )
        self.batch = Batch(self.runner, tokenizer, network.shape.vocabulary_size, memory)

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic."""
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.network.device

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that one token takes in the cache."""
        return bytes_per_token(self.network.shape, self.dtype)

    def generate(self, request: TextRequest, cancel: CancelToken) -> Iterator[TextDelta | Finished]:
        """Writes one reply, alone; its phases are "prefill" and "decode".

        Args:
            request: What to write; prompt and output together fit the model's context.
            cancel: Looked at before every token and every piece of the prompt.

        Yields:
            `TextDelta`s, none empty, then one `Finished`.

        Raises:
            Cancelled: The token was cancelled.
            Internal: The model's numbers are not finite.
        """
        reader = _OneReader(cancel)
        with self.batch.session():
            self.batch.admit(request, reader)
            while not reader.ended:
                self.batch.step()
                yield from reader.take()
        if reader.error is not None:
            raise reader.error

    def warm_up(self) -> None:
        """Runs every kind of step once, so that the first request pays for no kernel selection or workspace."""
        length = max(1, min(self.runner.piece_tokens(alone=True, prompts=1), self._context_token_count - 2))
        prompt = (min(self._tokenizer.text_ids),) * length
        for temperature in (0.0, 1.0):
            sampling = SamplingSettings(temperature, top_p=0.9, top_k=0, seed=0)
            for _ in self.generate(TextRequest("warm-up", prompt, 2, sampling), CancelToken()):
                pass


class _OneReader:
    """Reads one reply on the thread that writes it."""

    def __init__(self, token: CancelToken) -> None:
        self.token = token
        self.ended = False
        self.error: BaseException | None = None
        self._events: list[TextDelta | Finished] = []

    def put(self, event: TextDelta) -> None:
        self._events.append(event)

    def end(self, finished: Finished | None, error: BaseException | None) -> None:
        self.ended, self.error = True, error
        if finished is not None:
            self._events.append(finished)

    def take(self) -> list[TextDelta | Finished]:
        events, self._events = self._events, []
        return events
