"""Guesses of how a reply goes on: right ones save steps, and none changes a token."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import tiny_llm

from halfreel_llm.checkpoint import Checkpoint, find_checkpoint
from halfreel_llm.generation import Finished, TextDelta, TextModel, TextRequest
from halfreel_llm.lookup import Lookup
from halfreel_llm.messages import Message
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.schema import SchemaCompiler
from halfreel_llm.tokenizer import TextTokenizer, open_tokenizer
from halfreel_runtime.cancel import CancelToken

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, seed=0)
COOL = SamplingSettings(temperature=0.3, top_p=0.9, top_k=0, seed=4)
TEXT = {"type": "string", "maxLength": 40}
SCENE = {"type": "object", "properties": {"narration": TEXT, "picture": TEXT}, "required": ["narration", "picture"]}
SCENES = json.dumps({"type": "array", "items": {**SCENE, "additionalProperties": False}, "minItems": 4, "maxItems": 4})


def test_what_followed_before_is_guessed() -> None:
    lookup = Lookup()
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5]
    assert lookup.guess(ids, 9) == [6, 7, 8, 9]
    assert lookup.guess([*ids, 6], 2) == [7, 8]
    assert lookup.guess([*ids, 6, 1], 9) == []
    assert lookup.guess([*ids, 6, 1], 0) == []


def test_guesses_that_are_wrong_come_to_an_end() -> None:
    lookup = Lookup()
    ids = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5]
    for _ in range(2):
        assert lookup.guess(ids, 4)
        lookup.learn(4, 0)
    assert lookup.guess(ids, 4) == []


@pytest.fixture(scope="module")
def pocket() -> Checkpoint:
    return find_checkpoint("pocket")


@pytest.fixture(scope="module")
def words(pocket: Checkpoint) -> TextTokenizer:
    return open_tokenizer(pocket)


@pytest.fixture
def model(pocket: Checkpoint, words: TextTokenizer) -> TextModel:
    return tiny_llm.text_model(pocket, words, 1)


@pytest.fixture(scope="module")
def schemas(pocket: Checkpoint, words: TextTokenizer) -> Iterator[SchemaCompiler]:
    compiler = SchemaCompiler(words.grammar_tokenizer(pocket.config.vocab_size), words.reply_leads)
    yield compiler
    compiler.close()


@pytest.mark.parametrize("sampling", [GREEDY, COOL])
@pytest.mark.parametrize("under_a_schema", [False, True])
async def test_guesses_change_no_token(
    model: TextModel,
    words: TextTokenizer,
    schemas: SchemaCompiler,
    monkeypatch: pytest.MonkeyPatch,
    sampling: SamplingSettings,
    under_a_schema: bool,
) -> None:
    for name, value in (("_EQUAL_TOKENS", 2), ("_GUESSED_TOKENS", 6), ("_CREDIT", 10**6)):
        monkeypatch.setattr(f"halfreel_llm.lookup.{name}", value)  # many guesses, right and wrong
    prompt = tuple(words.encode_chat([Message("user", "a red circle moving over a blue sky, " * 3)]))
    texts, ends = [], []
    for checker in (model.batch._checker, None):
        monkeypatch.setattr(model.batch, "_checker", checker)
        matcher = await schemas.compile(SCENES) if under_a_schema else None
        *deltas, end = model.generate(TextRequest("r", prompt, 160, sampling, matcher=matcher), CancelToken())
        assert isinstance(end, Finished)
        texts.append("".join(each.text for each in deltas if isinstance(each, TextDelta)))
        ends.append(end)
    assert texts[0] == texts[1]
    assert texts[0]
    assert (ends[0].reason, ends[0].output_token_count) == (ends[1].reason, ends[1].output_token_count)
    assert ends[1].speculated_token_count == 0
    assert ends[0].speculated_token_count > 0
