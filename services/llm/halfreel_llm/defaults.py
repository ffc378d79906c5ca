"""What a request gets that names nothing: the model's own values where it was published with some.

Knows no request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfreel_llm import limits


@dataclass(frozen=True)
class Defaults:
    """Sampling and length where a request leaves them out."""

    temperature: float
    top_p: float
    top_k: int
    max_output_tokens: int

    @classmethod
    def of(cls, generation: Mapping[str, Any], context_token_count: int) -> Defaults:
        """Reads a model's generation_config.json; a value that is absent or over a limit gives way to ours."""

        def own(name: str, low: float, high: float, fallback: float) -> float:
            value = generation.get(name)
            return value if isinstance(value, int | float) and low <= value <= high else fallback

        temperature = own("temperature", limits.MIN_TEMPERATURE, limits.MAX_TEMPERATURE, limits.DEFAULT_TEMPERATURE)
        return cls(
            temperature=0.0 if generation.get("do_sample") is False else float(temperature),
            top_p=float(own("top_p", limits.MIN_TOP_P, limits.MAX_TOP_P, limits.DEFAULT_TOP_P) or limits.DEFAULT_TOP_P),
            top_k=int(own("top_k", limits.MIN_TOP_K, limits.MAX_TOP_K, limits.DEFAULT_TOP_K)),
            # Half of a small context is left to the prompt.
            max_output_tokens=min(limits.DEFAULT_OUTPUT_TOKENS, max(1, context_token_count // 2)),
        )
