"""Every precision of the language model against FP32: `python -m halfreel_llm.bench [--tokens N] [settings]`.

Loads the model as it is configured once for each precision and lets it write the same replies. How far its numbers are
from FP32's is read off FP32's own replies, token by token: how often both would have gone on with the same token
(`token_agreement`), and the mean Kullback-Leibler divergence of the next token's distribution from FP32's, in nats
(`kl_nats`). Likeness means something for trained models alone, such as the pocket one. One JSON line for each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from halfreel_llm.settings import SERVICE, LlmSettings, Precision
from halfreel_runtime.errors import HalfreelError, InvalidArgument
from halfreel_runtime.settings import load_settings

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
# Of the pocket model's world; to any other model they are as good as any words.
PROMPTS = (
    "a red circle moving over a blue sky",
    "two green stars in the night and a yellow ring that falls into the sea",
    "a small orange triangle and a large purple square meet in the snow",
    "a story about a cyan ball on the grass",
)
TOKEN_COUNT, MAX_TOKEN_COUNT = 32, 1024
EXIT_USAGE = 2


@dataclass(frozen=True)
class Reply:
    """What FP32 wrote after a prompt, and its logits before each token, [tokens, vocabulary], FP64 on the host."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logits: Any


def bench(settings: LlmSettings, token_count: int) -> Iterator[dict[str, Any]]:
    """Measures; yields one row for each precision, FP32 first.

    Args:
        settings: of the server; its precision is not used.
        token_count: tokens of each reply.

    Raises:
        InvalidArgument: the prompts and so many tokens are more than the model's context.
        CheckpointError: the model isn't here, or this server can't run it.
    """
    import torch

    from halfreel_llm.checkpoint import find_checkpoint
    from halfreel_llm.generation import TextModel
    from halfreel_llm.messages import Message
    from halfreel_llm.network import Network
    from halfreel_llm.precision import choose_dtype
    from halfreel_llm.tokenizer import open_tokenizer
    from halfreel_llm.weights import load_model
    from halfreel_runtime.device import find_device
    from halfreel_runtime.memory import MemoryMonitor

    device, checkpoint = find_device(settings.device), find_checkpoint(settings.model)
    target, tokenizer = torch.device(device.torch_name), open_tokenizer(checkpoint)
    prompts = [tuple(tokenizer.encode_chat([Message("user", text)])) for text in PROMPTS]
    context = max(map(len, prompts)) + token_count
    if context > (most := checkpoint.config.max_position_embeddings):
        raise InvalidArgument(
            f"tokens is {token_count}; with the longest prompt it must be at most {most}, the model's context"
        )
    replies: list[Reply] = []
    for precision in PRECISIONS:
        memory, int8 = MemoryMonitor(device), precision == "int8"
        memory.clear()  # what the precision before has left
        before_bytes, began_at = memory.live().reserved, time.monotonic()
        with memory.request("bench") as usage:
            with memory.phase("load"):
                dtype = choose_dtype(precision, on_gpu=device.kind == "cuda")
                # As the server reads them.
                model = load_model(checkpoint, device=torch.device("cpu") if int8 else target, dtype=dtype)
                network = Network(model, context, device=target, int8=int8)
                del model
            load_s = time.monotonic() - began_at
            if not replies:
                allowed = torch.zeros(network.shape.vocabulary_size, dtype=torch.bool)
                allowed[sorted(tokenizer.text_ids)] = True
                replies = [_write(network, prompt, token_count, allowed, context) for prompt in prompts]
            likeness = [_compare(network, reply, context) for reply in replies]
            nan_count = sum(each.nan_count for each in likeness)
            text_model = TextModel(network, tokenizer, memory, slot_count=1, context_token_count=context)
            text_model.warm_up()
            used_s = time.process_time()
            seconds, written = _timed(text_model, prompts, token_count)
            used_s = time.process_time() - used_s
        row: dict[str, Any] = {
            "part": "text",
            "precision": precision,
            "levers": "",
            "load_s": round(load_s, 3),
            "nan_count": nan_count,
            "seconds": round(seconds, 3),
            "cpu_s": round(used_s, 3),
            "token_count": written,
            "weight_bytes": network.weight_bytes,
            "peak_reserved_bytes": {
                each.phase: max(0, each.peak.reserved_bytes - before_bytes) for each in usage.phase_peaks
            },
            "compared_token_count": sum(len(each.token_ids) for each in replies),
            "device": device.name,
            "thread_count": torch.get_num_threads(),
        }
        count = row["compared_token_count"] - nan_count
        yield row | {
            "token_agreement": round(sum(each.equal_count for each in likeness) / row["compared_token_count"], 5),
            "kl_nats": float(f"{sum(each.divergence for each in likeness) / count:.3g}") if count else None,
        }
        del network, text_model


@dataclass(frozen=True)
class _Likeness:
    """Sums over the tokens of one reply."""

    equal_count: int
    divergence: float
    nan_count: int


def _write(network: Any, prompt_ids: tuple[int, ...], count: int, allowed: Any, context: int) -> Reply:
    """Writes a reply, the likeliest token each time; it goes on after an end, for so many are compared."""
    import torch

    cache, token_ids, logits = _cache(network, context), [], []
    ids, begin = prompt_ids, 0
    for _ in range(count):
        row = _logits(network, cache, ids, begin)[-1]
        logits.append(row)
        token_ids.append(int(row.masked_fill(~allowed, -torch.inf).argmax()))
        ids, begin = (token_ids[-1],), begin + len(ids)
    return Reply(prompt_ids, tuple(token_ids), torch.stack(logits))


def _compare(network: Any, reply: Reply, context: int) -> _Likeness:
    """Reads a reply of FP32 and holds what this network thinks of it against what FP32 thought."""
    import torch

    ids = reply.prompt_ids + reply.token_ids[:-1]
    found = _logits(network, _cache(network, context), ids, 0)[len(reply.prompt_ids) - 1 :]
    finite = torch.isfinite(found).all(-1)
    ours, theirs = found[finite].log_softmax(-1), reply.logits[finite].log_softmax(-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).clamp(min=0).sum()
    equal = (ours.argmax(-1) == theirs.argmax(-1)).sum()
    return _Likeness(int(equal), float(divergence), int((~finite).sum()))


def _cache(network: Any, context: int) -> Any:
    from halfreel_llm.kv_cache import KvCache

    return KvCache(network.shape, 1, context, device=network.device, dtype=network.dtype)


def _logits(network: Any, cache: Any, token_ids: tuple[int, ...], begin: int) -> Any:
    """Logits after each of some tokens that follow `begin` others, [tokens, vocabulary], FP64 on the host."""
    import torch

    from halfreel_llm.eager_rows import PromptRows

    with torch.inference_mode():
        rows = PromptRows(cache, 0, begin, len(token_ids))
        hidden = network.forward(torch.tensor(token_ids, device=network.device), rows)
        return network.logits(hidden).double().cpu()


def _timed(text_model: Any, prompts: list[tuple[int, ...]], token_count: int) -> tuple[float, int]:
    """Writes a reply to each prompt as the server does; returns the seconds, and the tokens they took."""
    from halfreel_llm.reply import Finished, TextRequest
    from halfreel_llm.sampling import SamplingSettings
    from halfreel_runtime.cancel import CancelToken
    from halfreel_runtime.errors import Internal

    greedy, written, began_at = SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, seed=0), 0, time.monotonic()
    for number, prompt_ids in enumerate(prompts):
        request = TextRequest(f"bench-{number}", prompt_ids, token_count, greedy)
        try:
            for event in text_model.generate(request, CancelToken()):
                if isinstance(event, Finished):
                    written += event.output_token_count
        except Internal:  # numbers that are not finite; they are counted where replies are compared
            continue
    return time.monotonic() - began_at, written


def main(argv: list[str]) -> int:
    """Prints the rows; returns the exit code."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--tokens", type=int, default=TOKEN_COUNT)
    read, rest = flags.parse_known_args(argv)
    settings = load_settings(LlmSettings, SERVICE, rest)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from transformers.utils import logging as transformers_logging

    from halfreel_llm.processors import processor_count

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(settings.thread_count or max(1, processor_count() - 1))  # as the server
    try:
        if not 1 <= read.tokens <= MAX_TOKEN_COUNT:
            raise InvalidArgument(f"tokens is {read.tokens}; it must be between 1 and {MAX_TOKEN_COUNT}")
        for row in bench(settings, read.tokens):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    except HalfreelError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
