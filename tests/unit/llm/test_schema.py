"""A client's JSON schema: its limits, and that a reply under it is always valid JSON unless it is cut."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
import tiny_llm

from halfreel_llm import limits
from halfreel_llm.generation import Finished, FinishReason, TextModel, TextRequest
from halfreel_llm.messages import Message
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.schema import SchemaCompiler, check_schema
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import InvalidArgument

SCRIPT = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 24},
        "scenes": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "narration": {"type": "string", "maxLength": 20},
                    "pattern": {"enum": ["plain", "dots"]},
                    "seconds": {"type": "integer", "minimum": 1, "maximum": 12},
                    "loud": {"type": "boolean"},
                },
                "required": ["narration", "pattern", "seconds", "loud"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "scenes"],
    "additionalProperties": False,
}


@pytest.fixture
def compiler(tokenizer: TextTokenizer) -> SchemaCompiler:
    return SchemaCompiler(tokenizer.grammar_tokenizer(tiny_llm.VOCABULARY_SIZE), tokenizer.reply_leads)


def check_script(value: Any) -> None:
    assert list(value) == ["title", "scenes"]
    assert 1 <= len(value["title"]) <= 24
    assert 1 <= len(value["scenes"]) <= 3
    for scene in value["scenes"]:
        assert list(scene) == ["narration", "pattern", "seconds", "loud"]
        assert len(scene["narration"]) <= 20
        assert scene["pattern"] in ("plain", "dots")
        assert isinstance(scene["seconds"], int)
        assert 1 <= scene["seconds"] <= 12
        assert isinstance(scene["loud"], bool)


async def test_a_random_model_always_ends_in_valid_json(
    text_model: TextModel, tokenizer: TextTokenizer, compiler: SchemaCompiler
) -> None:
    prompt = tuple(tokenizer.encode_chat([Message("user", "a film of a red circle")]))
    reasons = []
    for seed in range(20):
        request = TextRequest(
            request_id="",
            prompt_ids=prompt,
            max_output_tokens=90 if seed % 4 == 0 else 500,
            sampling=SamplingSettings(temperature=1.5, top_p=1.0, top_k=0, seed=seed),
            matcher=await compiler.compile(json.dumps(SCRIPT)),
        )
        *deltas, finished = text_model.generate(request, CancelToken())
        assert isinstance(finished, Finished)
        text = "".join(delta.text for delta in deltas)  # type: ignore[union-attr]
        reasons.append(finished.reason)
        if finished.reason is FinishReason.END_OF_TEXT:
            check_script(json.loads(text))
            assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) or "\\" in text
        else:
            assert finished.reason is FinishReason.LENGTH
            assert finished.output_token_count == request.max_output_tokens
    assert reasons.count(FinishReason.END_OF_TEXT) >= 15
    assert FinishReason.LENGTH in reasons


async def test_a_greedy_random_model_too(
    text_model: TextModel, tokenizer: TextTokenizer, compiler: SchemaCompiler
) -> None:
    prompt = tuple(tokenizer.encode_chat([Message("user", "go")]))
    matcher = await compiler.compile('{"type":"object","properties":{"n":{"type":"null"}},"required":["n"]}')
    *deltas, finished = text_model.generate(
        TextRequest("", prompt, 400, SamplingSettings(0, top_p=1, top_k=0, seed=0), matcher=matcher), CancelToken()
    )
    assert isinstance(finished, Finished)
    if finished.reason is FinishReason.END_OF_TEXT:
        assert json.loads("".join(delta.text for delta in deltas))["n"] is None  # type: ignore[union-attr]


def refusal(text: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        check_schema(text)
    assert caught.value.reason == "SCHEMA_INVALID"
    assert caught.value.violations[0].field == "json_schema"
    return caught.value.message


def nested(depth: int) -> str:
    return '{"items":' * (depth - 1) + "{}" + "}" * (depth - 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('"text"', "not a JSON object"),
        ("true", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"minimum": NaN}', "NaN"),
        ('{"type":"string","pattern":"(a+)+$"}', "# has 'pattern'"),
        ('{"properties":{"a":{"patternProperties":{"x":{}}}}}', "#/properties/a has 'patternProperties'"),
        ('{"anyOf":[{},{"format":"email"}]}', "#/anyOf/1 has 'format'"),
        ('{"x-guidance":{"whitespace_flexible":true}}', "'x-guidance'"),
        ('{"$defs":{"a":{"$ref":"http://127.0.0.1/x"}}}', "#/$defs/a has a $ref to another document"),
        ('{"$ref":"file:///etc/passwd"}', "$ref"),
        ('{"$ref":7}', "$ref"),
        ("[" * 20_000, "16384"),
        ("[" * 16_000, "JSON"),
        ('{"minimum":' + "9" * 10_000 + "}", "JSON"),
    ],
)
def test_a_schema_over_a_limit_is_refused_by_name(text: str, told: str) -> None:
    assert told in refusal(text)


def test_size_and_depth_are_exact() -> None:
    room = limits.MAX_SCHEMA_BYTES - len('{"title":""}')
    assert check_schema(json.dumps({"title": "x" * room}, separators=(",", ":")))
    assert f"{limits.MAX_SCHEMA_BYTES + 1} bytes" in refusal('{"title":"' + "x" * (room + 1) + '"}')
    assert f"{limits.MAX_SCHEMA_BYTES + 2} bytes" in refusal('{"title":"' + "é" * (room // 2 + 1) + '"}')
    assert check_schema(nested(limits.MAX_SCHEMA_DEPTH))
    assert "deeper than 16" in refusal(nested(limits.MAX_SCHEMA_DEPTH + 1))


def test_names_and_values_that_look_like_keywords_are_fine() -> None:
    assert check_schema(json.dumps({"properties": {"pattern": {}, "format": {"enum": [{"pattern": 1}]}}}))
    assert check_schema(json.dumps({"$defs": {"a": {}}, "$ref": "#/$defs/a", "default": {"format": "x"}}))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"not": {}},
        {"allOf": [False]},
        {"$ref": "#/nope"},
        {"anyOf": [{"$ref": "#"}]},
        {"enum": []},
        {"type": "integer", "minimum": 3, "maximum": 2},
    ],
)
async def test_a_schema_that_nothing_satisfies_is_refused(compiler: SchemaCompiler, schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await compiler.compile(json.dumps(schema))
    assert caught.value.reason == "SCHEMA_INVALID"
    assert len(caught.value.message) < 300


async def test_compiled_schemas_are_kept_up_to_a_limit(compiler: SchemaCompiler) -> None:
    texts = [json.dumps({"const": index}) for index in range(limits.MAX_CACHED_SCHEMAS + 8)]
    for text in texts:
        await compiler.compile(text)
    assert len(compiler._cache) == limits.MAX_CACHED_SCHEMAS
    assert texts[0] not in compiler._cache
    first, second = await compiler.compile(texts[-1]), await compiler.compile(texts[-1])
    assert first is not second


async def test_a_slow_compilation_is_given_up_and_does_not_hold_the_loop(
    compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SCHEMA_COMPILE_S", 0.1)
    monkeypatch.setattr(compiler, "_compile", lambda schema: time.sleep(0.5))
    held_s, given_up_s = [], []
    for number in range(5):  # others use this machine as well: the quickest tells
        began = time.monotonic()
        slow = asyncio.create_task(compiler.compile(f'{{"const": {number}}}'))
        await asyncio.sleep(0.01)
        held_s.append(time.monotonic() - began)
        with pytest.raises(InvalidArgument, match=r"over 0\.1 s"):
            await slow
        given_up_s.append(time.monotonic() - began)
    assert min(held_s) < 0.08
    assert min(given_up_s) < 0.3
