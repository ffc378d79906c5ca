"""ChatGLM3's tokenizer: SentencePiece pieces, nine control tokens after them, and its chat layout.

Knows nothing of the network. Source of the layout: the published THUDM/chatglm3-6b checkpoint, whose control tokens
have the ids 64789 and up, right after its 64,789 pieces.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from llguidance import LLTokenizer, TokenizerWrapper

from halfreel_llm.checkpoint import CheckpointError
from halfreel_llm.messages import Message

CONTROL_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
_SPACE = "\u2581"  # how SentencePiece writes a space
# SentencePiece takes more than twice as long for a text of twice the length: 4.4 ms for 1,600 words, 1.1 for 800.
_PART_CHARACTERS = 2000
_WORD_BREAK = re.compile(r"(?<=[!-~]) (?=[!-~])")
_FENCE = "\x02"  # in no text piece, so that the space SentencePiece puts first stays before it


class ChatGLM3Tokenizer:
    """Text to tokens and back, in ChatGLM3's chat layout. Safe to use from several threads."""

    reply_leads = (" \n ", " \n", " ")
    """The layout's own line break after the role, and the space that SentencePiece puts before a text."""

    def __init__(self, pieces_file: Path) -> None:
        """Opens a SentencePiece file.

        Raises:
            CheckpointError: The file is damaged.
        """
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(pieces_file))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{pieces_file.name} is damaged: {error}") from None
        piece_count: int = self._pieces.vocab_size()
        # Whether a text is its words' pieces: none holds the end of one and the next, and each gets a leading space.
        crossing = any(_SPACE in self._pieces.id_to_piece(each).lstrip(_SPACE) for each in range(piece_count))
        joined = self._pieces.encode("a") + self._pieces.encode("b")
        self._words_are_apart = not crossing and self._pieces.encode("a b") == joined
        self._control = {name: piece_count + index for index, name in enumerate(CONTROL_TOKENS)}
        self._bytes = [self._piece_bytes(piece_id) for piece_id in range(piece_count)]
        self._texts = [_whole_characters(piece) for piece in self._bytes]
        self.stop_ids = frozenset((self._pieces.eos_id(), self._control["<|user|>"], self._control["<|observation|>"]))
        self.text_ids = frozenset(piece_id for piece_id, text in enumerate(self._bytes) if text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Returns `[gMASK] sop`, then for each message its role, a line break and its text, then `<|assistant|>`.

        Line break and text are encoded apart, as the original does: each gets SentencePiece's own leading space. The
        names of control tokens inside a text are ordinary pieces.
        """
        ids = [self._control["[gMASK]"], self._control["sop"]]
        for message in messages:
            ids.append(self._control[f"<|{message.role}|>"])
            ids += self._pieces.encode("\n")
            ids += self._encode(message.content)
        ids.append(self._control["<|assistant|>"])
        return ids

    def stream(self) -> _PieceStream:
        """Starts the text of one reply."""
        return _PieceStream(self._bytes, self._texts)

    def grammar_tokenizer(self, vocabulary_size: int) -> LLTokenizer:
        """Returns the pieces for llguidance; ids that stand for no text have no bytes and so match no grammar."""
        tokens = self._bytes + [b""] * (vocabulary_size - len(self._bytes))
        wrapper = TokenizerWrapper(_GrammarVocabulary(tokens, self._pieces))
        return LLTokenizer(wrapper, n_vocab=vocabulary_size, eos_token=sorted(self.stop_ids))

    def _encode(self, text: str) -> list[int]:
        """Returns a text's pieces, of a long one part by part: no piece reaches over a space between two words."""
        ids: list[int] = []
        begin = 0
        while self._words_are_apart and len(text) - begin > _PART_CHARACTERS:
            found = _WORD_BREAK.search(text, begin + _PART_CHARACTERS)
            if found is None:
                break
            ids += self._pieces.encode(text[begin : found.start()])  # the space is the one that is put before a text
            begin = found.end()
        ids += self._pieces.encode(text[begin:])
        return ids

    def _piece_bytes(self, piece_id: int) -> bytes:
        pieces = self._pieces
        if pieces.is_byte(piece_id):
            return bytes.fromhex(pieces.id_to_piece(piece_id)[3:5])  # "<0xE4>"
        if pieces.is_control(piece_id) or pieces.is_unknown(piece_id) or pieces.is_unused(piece_id):
            return b""
        text: str = pieces.id_to_piece(piece_id)
        return text.replace(_SPACE, " ").encode()


class _PieceStream:
    """The text of one reply, without the white space that the layout puts before it."""

    def __init__(self, piece_bytes: list[bytes], texts: list[str | None]) -> None:
        self._bytes, self._texts = piece_bytes, texts
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._cut = False  # whether a character has begun and is not complete
        self._begun = False

    def push(self, token_id: int) -> str:
        text = None if self._cut else self._texts[token_id]
        if text is None:
            text = self._decoder.decode(self._bytes[token_id])
            self._cut = bool(self._decoder.getstate()[0])
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text


def _whole_characters(piece: bytes) -> str | None:
    """Returns a piece's text, decoded once for all replies; None where it is a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


class _GrammarVocabulary:
    """The fields and the call that llguidance's `TokenizerWrapper` reads."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], pieces: sentencepiece.SentencePieceProcessor) -> None:
        self.tokens = tokens
        self.eos_token_id: int = pieces.eos_id()
        self._pieces = pieces
        self._fence_length = len(pieces.encode(_FENCE))

    def __call__(self, text: str) -> list[int]:
        """Encodes text as it stands in the middle of a reply: without SentencePiece's leading space."""
        ids: list[int] = self._pieces.encode(_FENCE + text)
        return ids[self._fence_length :]
