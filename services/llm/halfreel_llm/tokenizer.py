"""What the server asks of a tokenizer, and which of the two kinds a model folder has.

Knows nothing of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llguidance import LLTokenizer

from halfreel_llm.chatglm3_tokenizer import ChatGLM3Tokenizer
from halfreel_llm.checkpoint import Checkpoint, CheckpointError
from halfreel_llm.fast_tokenizer import FastTokenizer
from halfreel_llm.messages import Message


class TokenStream(Protocol):
    """Turns the tokens of one reply into text, whole characters only."""

    def push(self, token_id: int) -> str:
        """Returns the characters that this token completes; empty where it completes none."""


class TextTokenizer(Protocol):
    """A model's tokenizer with its chat layout. Safe to use from several threads."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""

    @property
    def text_ids(self) -> frozenset[int]:
        """Tokens that stand for text; others are never sampled, but for `stop_ids`."""

    @property
    def reply_leads(self) -> tuple[str, ...]:
        """White space that the chat layout puts before a reply; a grammar lets it pass and `stream` drops it."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Returns the prompt's tokens, up to where the reply begins."""

    def stream(self) -> TokenStream:
        """Starts the text of one reply."""

    def grammar_tokenizer(self, vocabulary_size: int) -> LLTokenizer:
        """Returns the same vocabulary for llguidance; `vocabulary_size` is the width of the model's logits."""


def open_tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    """Opens the tokenizer of a model folder.

    A SentencePiece file without a tokenizer.json means ChatGLM3's chat layout.

    Raises:
        CheckpointError: There is none, it is damaged, or it doesn't fit the model.
    """
    folder, name = checkpoint.folder, checkpoint.model_id
    fast_file, pieces_file = folder / "tokenizer.json", folder / "tokenizer.model"
    tokenizer: TextTokenizer
    if fast_file.is_file():
        tokenizer = FastTokenizer.open(checkpoint)
    elif pieces_file.is_file():
        tokenizer = ChatGLM3Tokenizer(pieces_file)
    else:
        raise CheckpointError(f"model {name}: neither tokenizer.json nor tokenizer.model in its folder")
    largest, size = max(tokenizer.stop_ids | tokenizer.text_ids), checkpoint.config.vocab_size
    if largest >= size:
        raise CheckpointError(f"model {name}: its tokenizer has the token {largest}, its config.json {size} tokens")
    return tokenizer
