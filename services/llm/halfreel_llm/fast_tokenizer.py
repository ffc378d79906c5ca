"""A tokenizer.json with the chat template of its model folder.

Knows nothing of the network. The template is Jinja from the operator's model folder, rendered in transformers' sandbox;
a client's text never becomes part of a template.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from llguidance import LLTokenizer
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from halfreel_llm.checkpoint import Checkpoint, CheckpointError
from halfreel_llm.messages import Message
from halfreel_runtime.errors import InvalidArgument, Violation

_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")


class FastTokenizer:
    """Text to tokens and back, in the model's own chat layout. Safe to use from several threads."""

    reply_leads: tuple[str, ...] = ()

    def __init__(self, template: PreTrainedTokenizerFast, stop_ids: frozenset[int]) -> None:
        """Takes the opened tokenizer with its chat template, and the tokens that end a reply."""
        self._template = template
        self._parsing: Tokenizer = template.backend_tokenizer  # reads control tokens: for the template's own text
        self._plain = Tokenizer.from_str(self._parsing.to_str())  # reads them as text: for a client's text
        self._plain.encode_special_tokens = True
        added = self._parsing.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        self._special_names = tuple(added[token_id].content for token_id in special)
        self.stop_ids = stop_ids
        self.text_ids = frozenset(self._parsing.get_vocab(with_added_tokens=True).values()) - special - stop_ids

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> FastTokenizer:
        """Opens tokenizer.json, and reads the template and the names of control tokens beside it.

        Raises:
            CheckpointError: A file is damaged, or there is no chat template or no token that ends a reply.
        """
        folder, name = checkpoint.folder, checkpoint.model_id
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
            settings = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
            template = template_file.read_text(encoding="utf-8") if template_file.is_file() else None
        except Exception as error:  # tokenizers raises bare Exceptions for a damaged file
            raise CheckpointError(f"model {name}: its tokenizer can't be read: {error}") from None
        template = template or settings.get("chat_template")
        if not isinstance(template, str):
            raise CheckpointError(f"model {name}: it has no chat template; use a model tuned for chat")
        special = {key: token for key in _SPECIAL_KEYS if (token := _token_text(settings.get(key))) is not None}
        opened = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)
        stop_ids = _stop_ids(checkpoint, opened)
        if not stop_ids:
            raise CheckpointError(f"model {name}: neither its config nor its tokenizer says which token ends a reply")
        return cls(opened, stop_ids)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Renders the template and encodes it; the names of control tokens inside a message stay plain text.

        Raises:
            InvalidArgument: The template refuses these messages, as some do with two users in a row.
        """
        if not any(name in message.content for message in messages for name in self._special_names):
            text = self._render([message.content for message in messages], messages)
            return list(self._parsing.encode(text, add_special_tokens=False).ids)
        # Rendered with a mark for each message, so that the client's text can be encoded apart from the template's.
        mark = secrets.token_hex(16)
        text = self._render([f"{mark}{index}{mark}" for index in range(len(messages))], messages)
        ids: list[int] = []
        for position, part in enumerate(text.split(mark)):
            encoder, words = (self._plain, messages[int(part)].content) if position % 2 else (self._parsing, part)
            ids += encoder.encode(words, add_special_tokens=False).ids
        return ids

    def stream(self) -> _FastStream:
        """Starts the text of one reply."""
        return _FastStream(self._parsing)

    def grammar_tokenizer(self, vocabulary_size: int) -> LLTokenizer:
        """Returns the same vocabulary for llguidance."""
        return LLTokenizer(self._parsing.to_str(), n_vocab=vocabulary_size, eos_token=sorted(self.stop_ids))

    def _render(self, contents: Sequence[str], messages: Sequence[Message]) -> str:
        turns = [{"role": turn.role, "content": text} for turn, text in zip(messages, contents, strict=True)]
        try:
            return str(self._template.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:  # such as "roles must alternate"
            why = f"are refused by the model's chat template: {error}"
            raise InvalidArgument(f"messages {why}", violations=[Violation("messages", why)]) from None


class _FastStream:
    """The text of one reply."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        try:
            return self._decoder.step(self._tokenizer, token_id) or ""
        except Exception:  # tokenizers raises bare Exceptions; here for bytes that turned out to be no UTF-8
            # A decoder that reads neighbouring byte tokens together unsays what it said before them: it begins anew.
            self._decoder = DecodeStream(skip_special_tokens=True)
            return "\ufffd" + (self._decoder.step(self._tokenizer, token_id) or "")


def _token_text(value: Any) -> str | None:
    """Returns a control token's text, which tokenizer_config.json writes in one of two ways."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _stop_ids(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    named = [
        checkpoint.generation_defaults.get("eos_token_id"),
        checkpoint.config.eos_token_id,
        tokenizer.eos_token_id,
    ]
    ids: set[int] = set()
    for value in named:
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)
