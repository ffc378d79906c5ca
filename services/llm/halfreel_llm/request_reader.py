"""A message of the contract, checked and made into a request for the model.

Knows no queue: what is refused here never reaches the engine. Tokens and grammars are made away from the event loop.
"""

from __future__ import annotations

import asyncio
import re
import secrets

from halfreel.llm.v1 import llm_pb2
from halfreel_llm import limits
from halfreel_llm.defaults import Defaults
from halfreel_llm.messages import Message, Role
from halfreel_llm.planning import Lengths
from halfreel_llm.reply import TextRequest
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.schema import SchemaCompiler
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_runtime.checks import Checks
from halfreel_runtime.errors import InvalidArgument, Violation
from halfreel_runtime.logs import request_id_var

_ROLES: dict[int, Role] = {
    llm_pb2.ROLE_SYSTEM: "system",
    llm_pb2.ROLE_USER: "user",
    llm_pb2.ROLE_ASSISTANT: "assistant",
}
# The reason of a refusal for want of room in the context.
TOO_LONG_REASON = "PROMPT_TOO_LONG"
_VISIBLE_ASCII = re.compile(rf"[\x21-\x7e]{{0,{limits.MAX_REQUEST_ID_CHARACTERS}}}")


class RequestReader:
    """Reads requests for one model."""

    def __init__(
        self, tokenizer: TextTokenizer, schemas: SchemaCompiler, *, context_token_count: int, defaults: Defaults
    ) -> None:
        """Takes what depends on the model."""
        self._tokenizer = tokenizer
        self._schemas = schemas
        self._context_token_count = context_token_count
        self._defaults = defaults

    async def read(self, message: llm_pb2.GenerateRequest) -> TextRequest:
        """Checks a request and makes its tokens.

        Raises:
            InvalidArgument: A field is out of its limits (INVALID_FIELD), prompt and reply don't fit the context
                (PROMPT_TOO_LONG), or the schema can't be used (SCHEMA_INVALID).
        """
        self._check(message)
        named, defaults = message.HasField, self._defaults
        max_output_tokens = (
            message.max_output_token_count if named("max_output_token_count") else defaults.max_output_tokens
        )
        chat = [Message(_ROLES[turn.role], turn.content) for turn in message.messages]
        prompt_ids = await asyncio.to_thread(self._tokenizer.encode_chat, chat)
        self._check_room(len(prompt_ids), max_output_tokens)
        matcher = await self._schemas.compile(message.json_schema) if message.json_schema else None
        return TextRequest(
            request_id=message.request_id or request_id_var.get(),
            prompt_ids=tuple(prompt_ids),
            max_output_tokens=max_output_tokens,
            sampling=SamplingSettings(
                temperature=message.temperature if named("temperature") else defaults.temperature,
                top_p=message.top_p if named("top_p") else defaults.top_p,
                top_k=message.top_k if named("top_k") else defaults.top_k,
                seed=message.seed if named("seed") else secrets.randbelow(limits.MAX_SEED + 1),
            ),
            stop=tuple(message.stop),
            matcher=matcher,
        )

    def read_plan(self, message: llm_pb2.PlanMemoryRequest, slot_count: int) -> Lengths:
        """Checks what a plan is asked of.

        Raises:
            InvalidArgument: A field is out of its limits (INVALID_FIELD).
        """
        context = self._context_token_count
        output = self._defaults.max_output_tokens
        if message.HasField("max_output_token_count"):
            output = message.max_output_token_count
        count = message.concurrent_request_count if message.HasField("concurrent_request_count") else 1
        checks = Checks()
        checks.between("prompt_token_count", message.prompt_token_count, 0, context, "tokens")
        checks.between("max_output_token_count", output, 1, context, "tokens")
        checks.between("concurrent_request_count", count, 1, slot_count, "requests")
        checks.done()
        self._check_room(message.prompt_token_count, output)
        return Lengths(message.prompt_token_count, output, count)

    def _check(self, message: llm_pb2.GenerateRequest) -> None:
        checks = Checks()
        checks.require(
            _VISIBLE_ASCII.fullmatch(message.request_id) is not None,
            "request_id",
            f"must be at most {limits.MAX_REQUEST_ID_CHARACTERS} visible ASCII characters",
        )
        _check_messages(checks, message)
        if message.HasField("max_output_token_count"):
            count = message.max_output_token_count
            checks.between("max_output_token_count", count, 1, self._context_token_count, "tokens")
        if message.HasField("temperature"):
            checks.between("temperature", message.temperature, limits.MIN_TEMPERATURE, limits.MAX_TEMPERATURE)
        if message.HasField("top_p"):
            checks.require(
                limits.MIN_TOP_P < message.top_p <= limits.MAX_TOP_P,
                "top_p",
                f"is {message.top_p:g}; it must be above {limits.MIN_TOP_P:g} and at most {limits.MAX_TOP_P:g}",
            )
        if message.HasField("top_k"):
            checks.between("top_k", message.top_k, limits.MIN_TOP_K, limits.MAX_TOP_K)
        if message.HasField("seed"):
            checks.between("seed", message.seed, limits.MIN_SEED, limits.MAX_SEED)
        _check_stop(checks, message)
        checks.done()

    def _check_room(self, prompt_tokens: int, max_output_tokens: int) -> None:
        context = self._context_token_count
        if prompt_tokens + max_output_tokens <= context:
            return
        raise InvalidArgument(
            f"messages have {prompt_tokens} tokens and max_output_token_count is {max_output_tokens}; "
            f"together they may have at most {context}.",
            reason=TOO_LONG_REASON,
            metadata={
                "prompt_token_count": str(prompt_tokens),
                "max_output_token_count": str(max_output_tokens),
                "context_token_count": str(context),
            },
            violations=[Violation("messages", f"have {prompt_tokens} tokens; the context is {context}")],
        )


def _check_messages(checks: Checks, message: llm_pb2.GenerateRequest) -> None:
    turns = message.messages
    low, high = limits.MIN_MESSAGE_COUNT, limits.MAX_MESSAGE_COUNT
    if not checks.between("messages", len(turns), low, high, "messages"):
        return
    for index, turn in enumerate(turns):
        checks.require(turn.role in _ROLES, f"messages[{index}].role", "must be a system's, a user's or an assistant's")
        checks.require(bool(turn.content.strip()), f"messages[{index}].content", "is empty")
    characters = sum(len(turn.content) for turn in turns)
    checks.require(
        characters <= limits.MAX_CONTENT_CHARACTERS,
        "messages",
        f"have {characters} characters together; they may have at most {limits.MAX_CONTENT_CHARACTERS}",
    )
    checks.require(
        turns[-1].role != llm_pb2.ROLE_ASSISTANT, f"messages[{len(turns) - 1}].role", "must not be the assistant's"
    )


def _check_stop(checks: Checks, message: llm_pb2.GenerateRequest) -> None:
    checks.require(
        len(message.stop) <= limits.MAX_STOP_COUNT,
        "stop",
        f"has {len(message.stop)} strings; it may have at most {limits.MAX_STOP_COUNT}",
    )
    for index, string in enumerate(message.stop[: limits.MAX_STOP_COUNT]):
        low, high = limits.MIN_STOP_CHARACTERS, limits.MAX_STOP_CHARACTERS
        checks.between(f"stop[{index}]", len(string), low, high, "characters")
