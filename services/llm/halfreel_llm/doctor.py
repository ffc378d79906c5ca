"""Says what the LLM server could do on this machine: `python -m halfreel_llm.doctor [--json] [--setting value ...]`.

Takes the server's own settings. Loads no weights; reads their sizes. The exit code is 0 when the server would run.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from halfreel_llm.settings import SERVICE, LlmSettings
from halfreel_runtime.errors import HalfreelError
from halfreel_runtime.settings import load_settings

if TYPE_CHECKING:
    from halfreel_llm.checkpoint import Checkpoint

T = TypeVar("T")
_LIBRARIES = ("halfreel-llm", "torch", "transformers", "llguidance", "sentencepiece")


@dataclass(frozen=True)
class Check:
    """One thing that the server needs: whether it is there, and what it is or why it is not."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks. `weight_bytes` and `cache_bytes` must fit in `free_bytes`.

    The cache is that of one reply over the whole context, and on a GPU the spare slot beside it.
    """

    service: str
    ready: bool
    device: str
    device_name: str
    precision: str
    weight_bytes: int
    cache_bytes: int
    free_bytes: int
    versions: dict[str, str]
    checks: list[Check]


def diagnose(settings: LlmSettings) -> Diagnosis:
    """Checks device, model, tokenizer and memory."""
    from halfreel_llm.checkpoint import find_checkpoint
    from halfreel_llm.precision import choose_dtype, dtype_name
    from halfreel_llm.runners import SPARE_SLOT_COUNT
    from halfreel_llm.tokenizer import open_tokenizer
    from halfreel_runtime.device import CPU, find_device
    from halfreel_runtime.memory import MemoryMonitor

    checks: list[Check] = []
    device = _checked(checks, "device", lambda: find_device(settings.device), lambda found: found.name) or CPU
    report = MemoryMonitor(device).report()
    free_bytes = report.devices[0].device_free_bytes if device.kind == "cuda" else report.host.available_bytes
    dtype = choose_dtype(settings.precision, on_gpu=device.kind == "cuda")
    weight_bytes = cache_bytes = 0
    found = _checked(checks, "model", lambda: find_checkpoint(settings.model), lambda checkpoint: checkpoint.model_id)
    if found is not None:
        _checked(checks, "tokenizer", lambda: open_tokenizer(found), lambda tokenizer: type(tokenizer).__name__)
        count = _checked(checks, "weights", lambda: _parameter_count(found), lambda count: f"{count} parameters") or 0
        weight_bytes = count * dtype.itemsize
        slots = 1 + (SPARE_SLOT_COUNT if device.kind == "cuda" else 0)
        cache_bytes = slots * _cached_numbers(found, settings.context_token_count) * dtype.itemsize
    told = f"{weight_bytes} bytes of weights and {cache_bytes} of KV cache, {free_bytes} bytes free"
    checks.append(Check("memory", weight_bytes + cache_bytes < free_bytes, told))
    return Diagnosis(
        service=SERVICE,
        ready=all(check.ok for check in checks),
        device=device.torch_name,
        device_name=device.name,
        precision=dtype_name(dtype),
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
        free_bytes=free_bytes,
        versions={"python": platform.python_version()}
        | {library: importlib.metadata.version(library) for library in _LIBRARIES},
        checks=checks,
    )


def _checked(checks: list[Check], name: str, find: Callable[[], T], describe: Callable[[T], str]) -> T | None:
    """Adds a check of something that is found or refused; returns what was found, or None."""
    try:
        found = find()
    except HalfreelError as error:
        checks.append(Check(name, False, error.message))
        return None
    checks.append(Check(name, True, describe(found)))
    return found


def _parameter_count(checkpoint: Checkpoint) -> int:
    """Counts the parameters of a model by the headers of its weight files.

    Raises:
        CheckpointError: A file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    from halfreel_llm.checkpoint import CheckpointError

    count = 0
    for file in checkpoint.weight_files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  # not a dict
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"model {checkpoint.model_id}: {file.name} is damaged: {error}") from None
    return count


def _cached_numbers(checkpoint: Checkpoint, context_token_count: int) -> int:
    """Counts what the KV cache of one reply over the whole context holds: a key and a value per layer and token."""
    config = checkpoint.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = min(context_token_count or config.max_position_embeddings, config.max_position_embeddings)
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head_size * tokens)


def main(argv: list[str]) -> int:
    """Prints the diagnosis, as lines for people or as JSON; returns the exit code."""
    as_json = "--json" in argv
    settings = load_settings(LlmSettings, SERVICE, [flag for flag in argv if flag != "--json"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    diagnosis = diagnose(settings)
    if as_json:
        sys.stdout.write(json.dumps(asdict(diagnosis)) + "\n")
    else:
        for check in diagnosis.checks:
            sys.stdout.write(f"{'ok' if check.ok else 'NO':<3} {check.name:<15} {check.detail}\n")
    return 0 if diagnosis.ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
