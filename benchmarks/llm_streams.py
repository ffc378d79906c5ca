"""On a CPU: the pocket model for 1, 8 and 32 replies at once, against transformers' `generate` one after another.

    python benchmarks/llm_streams.py [--tokens 100] [--rounds 5] [--threads 1] [--write]

Both in this process with as many threads, in turns, so that what else the machine does falls on both; the same prompt,
the same length, sampled. Then scripts under the gateway's schema: what forced and guessed tokens save of their steps.
The last line is the result.
"""

import argparse
import asyncio
import json
import statistics
import time
from typing import Any

import torch
from llm_bench import result_of, write_result

from halfreel_gateway import script
from halfreel_llm.checkpoint import find_checkpoint
from halfreel_llm.generation import Finished, TextModel, TextRequest
from halfreel_llm.messages import Message
from halfreel_llm.network import Network
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.schema import SchemaCompiler
from halfreel_llm.tokenizer import TextTokenizer, open_tokenizer
from halfreel_llm.weights import load_model
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import CPU
from halfreel_runtime.memory import MemoryMonitor

STREAMS = (1, 8, 32)
CONTEXT = 4096
IDEAS = (
    "a red circle moving over a blue sky",
    "a green square falling over a yellow field and a blue star rising",
    "a yellow star, then a red square, then a blue circle",
    "a white circle growing in a black night",
)


class Endless:
    """The real tokenizer without tokens that end a reply, so that all replies are as long as asked for."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, real: TextTokenizer) -> None:
        """Takes the real one."""
        self.text_ids, self.reply_leads, self.stream = real.text_ids, real.reply_leads, real.stream


class Reader:
    """Takes no notice of the text."""

    def __init__(self) -> None:
        """A reader."""
        self.token = CancelToken()
        self.finished: Finished | None = None

    def put(self, event: Any) -> None:
        """Nothing."""

    def end(self, finished: Finished | None, error: BaseException | None) -> None:
        """It is over."""
        if error is not None:
            raise error
        self.finished = finished


def batch_tok_s(text_model: TextModel, prompt: tuple[int, ...], streams: int, tokens: int) -> float:
    """Tokens a second of so many replies, prompts included."""
    batch, readers = text_model.batch, [Reader() for _ in range(streams)]
    batch.forget()  # or the prompt would not be read again
    began = time.perf_counter()
    with batch.session():
        for seed, reader in enumerate(readers):
            batch.admit(TextRequest("s", prompt, tokens, SamplingSettings(0.9, 1.0, 0, seed)), reader)
        while batch.running_count:
            batch.step()
    return streams * tokens / (time.perf_counter() - began)


def peer_tok_s(model: Any, prompt: tuple[int, ...], tokens: int) -> float:
    """Tokens a second of one reply of transformers' `generate`; of more, one after another, it is the same."""
    began = time.perf_counter()
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": True, "temperature": 0.9}
    model.generate(torch.tensor([prompt]), eos_token_id=-1, pad_token_id=0, top_k=0, **options)
    return tokens / (time.perf_counter() - began)


async def scripts(text_model: TextModel, tokenizer: TextTokenizer, vocabulary_size: int) -> dict[str, Any]:
    """Scripts under the gateway's schema, plainly and with what saves steps."""
    limits = script.ScriptLimits(3, 1, 2)
    compiler = SchemaCompiler(tokenizer.grammar_tokenizer(vocabulary_size), tokenizer.reply_leads)
    figures: dict[str, Any] = {}
    checker = text_model.batch._checker
    for name, checks, sampling in (
        ("greedy", True, SamplingSettings(0.0, 1.0, 0, 0)),
        ("greedy_without_guesses", False, SamplingSettings(0.0, 1.0, 0, 0)),
        ("sampled", True, SamplingSettings(0.8, 0.8, 0, 1)),
    ):
        text_model.batch._checker = checker if checks else None
        ends, began = [], time.perf_counter()
        for idea in IDEAS:
            chat = [Message("system", script.INSTRUCTION), Message("user", script.question(idea, 3))]
            prompt = tuple(tokenizer.encode_chat(chat))
            matcher = await compiler.compile(limits.schema())
            *_, end = text_model.generate(TextRequest("s", prompt, 900, sampling, matcher=matcher), CancelToken())
            assert isinstance(end, Finished)
            ends.append(end)
        tokens = sum(end.output_token_count for end in ends)
        figures |= {
            f"script_{name}_ms_per_token": 1000 * (time.perf_counter() - began) / tokens,
            f"script_{name}_tokens": tokens,
            f"script_{name}_forced": sum(end.forced_token_count for end in ends),
            f"script_{name}_guessed": sum(end.speculated_token_count for end in ends),
        }
    figures["script_cached_prompt_tokens"] = ends[-1].cached_prompt_token_count
    compiler.close()
    return figures


def main() -> None:
    """Measures, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokens", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    torch.set_num_threads(read.threads)
    checkpoint, device = find_checkpoint("pocket"), torch.device("cpu")
    tokenizer = open_tokenizer(checkpoint)
    model: Any = load_model(checkpoint, device=device, dtype=torch.float32)
    network = Network(load_model(checkpoint, device=device, dtype=torch.float32), CONTEXT)
    sizes = {"slot_count": max(STREAMS), "context_token_count": CONTEXT}
    endless: Any = Endless(tokenizer)
    text_model = TextModel(network, endless, MemoryMonitor(CPU), **sizes)
    prompt = tuple(tokenizer.encode_chat([Message("user", IDEAS[0])]))
    text_model.warm_up()
    peer_tok_s(model, prompt, 8)
    rounds: dict[str, list[float]] = {f"tok_s_{streams}": [] for streams in STREAMS} | {"tok_s_peer": []}
    ratios: dict[str, list[float]] = {f"ratio_{streams}": [] for streams in STREAMS}
    for _ in range(read.rounds):
        peer = peer_tok_s(model, prompt, read.tokens)
        rounds["tok_s_peer"].append(peer)
        for streams in STREAMS:
            own = batch_tok_s(text_model, prompt, streams, read.tokens)
            rounds[f"tok_s_{streams}"].append(own)
            ratios[f"ratio_{streams}"].append(own / peer)
        print(json.dumps({name: round(values[-1], 2) for name, values in (rounds | ratios).items()}), flush=True)
    figures: dict[str, Any] = {name: statistics.median(values) for name, values in (rounds | ratios).items()}
    ends_normally = TextModel(network, tokenizer, MemoryMonitor(CPU), slot_count=1, context_token_count=CONTEXT)
    figures |= asyncio.run(scripts(ends_normally, tokenizer, checkpoint.config.vocab_size))
    line = result_of(figures, where="cpu", libraries=("torch", "transformers", "llguidance"))
    if read.write:
        write_result(line, "llm_streams", "cpu")
    print(line)


if __name__ == "__main__":
    main()
