"""Every ceiling and default of a request to the language model, in one table.

Knows no request and no model: `request.py` and `schema.py` hold values against it.
"""

from __future__ import annotations

from typing import Final

MAX_REQUEST_ID_CHARACTERS: Final = 128  # visible ASCII

# Messages.
MIN_MESSAGE_COUNT: Final = 1
MAX_MESSAGE_COUNT: Final = 64
MAX_CONTENT_CHARACTERS: Final = 1_000_000  # over all messages of one request, checked before tokenising

# Sampling.
MIN_TEMPERATURE: Final = 0.0
MAX_TEMPERATURE: Final = 2.0
MIN_TOP_P: Final = 0.0  # itself excluded: it would keep no token
MAX_TOP_P: Final = 1.0
MIN_TOP_K: Final = 0
MAX_TOP_K: Final = 1000
MIN_SEED: Final = 0
MAX_SEED: Final = 2**63 - 1

# Stop strings.
MAX_STOP_COUNT: Final = 4
MIN_STOP_CHARACTERS: Final = 1
MAX_STOP_CHARACTERS: Final = 64

# A client's JSON schema.
MAX_SCHEMA_BYTES: Final = 16 * 1024  # UTF-8
MAX_SCHEMA_DEPTH: Final = 16  # objects and arrays inside one another
MAX_SCHEMA_COMPILE_S: Final = 2.0
MAX_CACHED_SCHEMAS: Final = 32

# Used where neither the request nor the model's own generation_config.json names a value.
DEFAULT_OUTPUT_TOKENS: Final = 512
DEFAULT_TEMPERATURE: Final = 0.8  # the values ChatGLM3 was published with
DEFAULT_TOP_P: Final = 0.8
DEFAULT_TOP_K: Final = 0
