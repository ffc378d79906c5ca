"""A client's JSON schema: held against its limits, and compiled into a grammar away from the event loop.

Knows no request but the schema's text. No regular expression of a client is ever compiled.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from llguidance import LLMatcher, LLTokenizer

from halfreel_llm import limits
from halfreel_runtime.errors import InvalidArgument, Violation

_FORBIDDEN = {
    "pattern": "regular expressions are not accepted",
    "patternProperties": "regular expressions are not accepted",
    "format": "formats are not accepted",
    "x-guidance": "options of the grammar compiler are not accepted",
}
_NAMED_SCHEMAS = ("properties", "$defs", "definitions", "dependentSchemas")  # their keys are names, not keywords
_DATA = ("const", "enum", "default", "examples")  # not schemas, whatever is in them
_ERROR_CHARACTERS = 200  # shown of the compiler's message
_COMPILE_THREADS = 2  # a schema that holds one up to its time limit must not hold up the next


class SchemaCompiler:
    """Grammars for one tokenizer; the last ones used are kept."""

    def __init__(self, tokenizer: LLTokenizer, reply_leads: Sequence[str]) -> None:
        """Takes the vocabulary, and the white space that the chat layout puts before a reply."""
        self._tokenizer = tokenizer
        self._reply_leads = tuple(reply_leads)
        self._threads = ThreadPoolExecutor(_COMPILE_THREADS, thread_name_prefix="schema")
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()

    async def compile(self, text: str) -> LLMatcher:
        """Returns a matcher of its own for one reply.

        Raises:
            InvalidArgument: The schema is over a limit, is no schema, or takes too long (reason SCHEMA_INVALID).
        """
        if text not in self._cache:
            self._cache[text] = await self._compile_in_time(check_schema(text))
        self._cache.move_to_end(text)
        while len(self._cache) > limits.MAX_CACHED_SCHEMAS:
            self._cache.popitem(last=False)
        return self._cache[text].deep_copy()

    def close(self) -> None:
        """Lets the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _compile_in_time(self, schema: dict[str, Any]) -> LLMatcher:
        compiling = asyncio.get_running_loop().run_in_executor(self._threads, self._compile, schema)
        try:
            return await asyncio.wait_for(compiling, limits.MAX_SCHEMA_COMPILE_S)
        except TimeoutError:
            _refuse(f"it takes over {limits.MAX_SCHEMA_COMPILE_S:g} s to compile; make it simpler")

    def _compile(self, schema: dict[str, Any]) -> LLMatcher:
        # Without white space between its parts: a weak model would fill its budget with it.
        body = json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})
        plain = self._matcher(f"start: %json {body}")
        if not plain.is_error():
            plain.compute_bitmask()  # a grammar that no text satisfies shows at its first step only
        if plain.is_error():
            _refuse(plain.get_error().splitlines()[0][:_ERROR_CHARACTERS])
        if not self._reply_leads:
            return self._matcher(f"start: %json {body}")
        leads = " | ".join(json.dumps(lead) for lead in self._reply_leads)
        return self._matcher(f"start: LEAD? body\nLEAD: {leads}\nbody: %json {body}")

    def _matcher(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)


def check_schema(text: str) -> dict[str, Any]:
    """Holds a schema against its limits.

    Returns:
        The parsed schema.

    Raises:
        InvalidArgument: It is over one of them (reason SCHEMA_INVALID).
    """
    size = len(text.encode())
    if size > limits.MAX_SCHEMA_BYTES:
        _refuse(f"it has {size} bytes; at most {limits.MAX_SCHEMA_BYTES} are accepted")
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        _refuse(f"it is not JSON: {error}"[:_ERROR_CHARACTERS])
    if not isinstance(schema, dict):
        _refuse("it is not a JSON object")
    if _is_deeper(schema, limits.MAX_SCHEMA_DEPTH):
        _refuse(f"it nests deeper than {limits.MAX_SCHEMA_DEPTH} levels")
    for place, keyword, value in _keywords(schema, "#"):
        if keyword in _FORBIDDEN:
            _refuse(f"{place} has {keyword!r}; {_FORBIDDEN[keyword]}")
        if keyword == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            _refuse(f"{place} has a $ref to another document; only references within it are accepted")
    return schema


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return False
    return levels == 0 or any(_is_deeper(part, levels - 1) for part in inner)


def _keywords(schema: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """Yields (place, keyword, value) of every schema within a schema."""
    if isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from _keywords(part, f"{place}/{index}")
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        yield place, keyword, value
        if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
            for name, part in value.items():
                yield from _keywords(part, f"{place}/{keyword}/{name}")
        elif keyword not in _DATA:
            yield from _keywords(value, f"{place}/{keyword}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _refuse(description: str) -> NoReturn:
    raise InvalidArgument(
        f"json_schema is refused: {description}",
        reason="SCHEMA_INVALID",
        violations=[Violation("json_schema", description)],
    )
