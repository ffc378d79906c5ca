"""Are greedy tokens those of transformers, whatever the company, and what do FP16 and 8-bit weights change?

    python benchmarks/llm_quality.py [--prompts 1000] [--tokens 24] [--write]

The pocket model on the CPU: every prompt through transformers' `generate` in FP32, one after another, and through the
server's batch, where replies of other prompts join and leave all the time. Then the same in FP16 and with 8-bit
weights, held against our FP32. Replies are compared token by token. The last line is the result.
"""

import argparse
import json
import random
import time
from typing import Any

import torch
from llm_bench import result_of, write_result

from halfreel_llm.checkpoint import Checkpoint, find_checkpoint
from halfreel_llm.generation import Finished, TextDelta, TextModel, TextRequest
from halfreel_llm.messages import Message
from halfreel_llm.network import Network
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.tokenizer import TextTokenizer, open_tokenizer
from halfreel_llm.weights import load_model
from halfreel_pocket.words import COLOURS, MOTIONS, SHAPES
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import CPU
from halfreel_runtime.memory import MemoryMonitor

CONTEXT = 1024
SLOTS = 8
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, seed=0)


class Numbers:
    """The real tokenizer, but for its text: that is the tokens' numbers."""

    def __init__(self, real: TextTokenizer) -> None:
        """Takes the real one."""
        self.stop_ids, self.text_ids, self.reply_leads = real.stop_ids, real.text_ids, real.reply_leads

    def stream(self) -> "Numbers":
        """Itself."""
        return self

    def push(self, token_id: int) -> str:
        """The number."""
        return f" {token_id}"


class Reader:
    """Collects the numbers of one reply."""

    def __init__(self) -> None:
        """A reader."""
        self.token = CancelToken()
        self.text = ""
        self.finished: Finished | None = None

    def put(self, event: TextDelta) -> None:
        """More numbers."""
        self.text += event.text

    def end(self, finished: Finished | None, error: BaseException | None) -> None:
        """All of them."""
        if error is not None:
            raise error
        self.finished = finished


def prompts_of(count: int, tokenizer: TextTokenizer) -> list[list[int]]:
    """Ideas of one to four shapes; no two alike."""
    drawn, seen = random.Random(7), set()
    while len(seen) < count:
        parts = [
            f"a {drawn.choice(list(COLOURS))} {drawn.choice(list(SHAPES))} {drawn.choice(list(MOTIONS))}"
            for _ in range(drawn.randint(1, 4))
        ]
        seen.add(" and ".join(parts))
    return [tokenizer.encode_chat([Message("user", text)]) for text in sorted(seen)]


def theirs(checkpoint: Checkpoint, tokenizer: TextTokenizer, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Transformers' own greedy replies, one prompt after another."""
    model: Any = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    never = sorted(set(range(checkpoint.config.vocab_size)) - tokenizer.text_ids - tokenizer.stop_ids)
    replies = []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=tokens,
            do_sample=False,
            suppress_tokens=never,
            eos_token_id=sorted(tokenizer.stop_ids),
        )
        replies.append([each for each in output[0, len(prompt) :].tolist() if each not in tokenizer.stop_ids])
    return replies


def ours(
    checkpoint: Checkpoint,
    tokenizer: TextTokenizer,
    prompts: list[list[int]],
    tokens: int,
    dtype: torch.dtype = torch.float32,
    *,
    int8: bool = False,
) -> list[list[int]]:
    """The same replies out of a batch that others join and leave, one to eight at once."""
    model = load_model(checkpoint, device=torch.device("cpu"), dtype=dtype)
    numbers: Any = Numbers(tokenizer)
    network = Network(model, CONTEXT, int8=int8)
    text_model = TextModel(network, numbers, MemoryMonitor(CPU), slot_count=SLOTS, context_token_count=CONTEXT)
    batch, drawn = text_model.batch, random.Random(3)
    readers = [Reader() for _ in prompts]
    waiting = list(zip(prompts, readers, strict=True))[::-1]
    wanted = 1
    with batch.session():
        while waiting or batch.running_count:
            while waiting and batch.running_count < wanted:
                prompt, reader = waiting.pop()
                batch.admit(TextRequest("q", tuple(prompt), tokens, GREEDY), reader)
            if drawn.random() < 0.1:
                wanted = drawn.randint(1, SLOTS)
            batch.step()
    return [[int(each) for each in reader.text.split()] for reader in readers]


def agreement(left: list[list[int]], right: list[list[int]]) -> tuple[float, float]:
    """The share of equal replies, and of tokens before the first that differs."""
    equal = sum(one == other for one, other in zip(left, right, strict=True)) / len(left)
    same = whole = 0
    for one, other in zip(left, right, strict=True):
        length = max(len(one), len(other))
        whole += length
        same += next((at for at in range(length) if one[at : at + 1] != other[at : at + 1]), length)
    return equal, same / whole


def main() -> None:
    """Measures, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prompts", type=int, default=1000)
    arguments.add_argument("--tokens", type=int, default=24)
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    torch.set_num_threads(1)
    checkpoint = find_checkpoint("pocket")
    tokenizer = open_tokenizer(checkpoint)
    prompts = prompts_of(read.prompts, tokenizer)
    figures: dict[str, Any] = {"prompts": len(prompts), "tokens": read.tokens}
    began = time.monotonic()
    batch = ours(checkpoint, tokenizer, prompts, read.tokens)
    print(json.dumps({"ours_s": round(time.monotonic() - began, 1)}), flush=True)
    for name, dtype, int8 in (("fp16", torch.float16, False), ("int8", torch.float32, True)):
        other = ours(checkpoint, tokenizer, prompts, read.tokens, dtype, int8=int8)
        figures[f"equal_replies_{name}"], figures[f"token_agreement_{name}"] = agreement(batch, other)
        print(json.dumps(figures), flush=True)
    began = time.monotonic()
    reference = theirs(checkpoint, tokenizer, prompts, read.tokens)
    print(json.dumps({"theirs_s": round(time.monotonic() - began, 1)}), flush=True)
    figures["equal_replies"], figures["token_agreement"] = agreement(batch, reference)
    figures["output_tokens"] = sum(len(reply) for reply in reference)
    line = result_of(figures, where="cpu", libraries=("torch", "transformers"))
    if read.write:
        write_result(line, "llm_quality", "cpu")
    print(line)


if __name__ == "__main__":
    main()
