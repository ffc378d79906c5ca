"""How long does ChatGLM3-6B take for one token of one reply, and where does the time go?

    python benchmarks/llm_decode.py [--tiny] [--peers] [--profile] [--int8] [--rows 1,8,64,256] [--write]

The server's own engine on the real shape with random weights, without gRPC: milliseconds a step at each number of
replies, time to read a prompt, and the logits against the model class of transformers on the same weights. --peers runs
transformers' own ways on the same card, each in a process of its own. The last line is the result.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from llm_bench import card, result_of, write_result

PROMPT_TOKENS = 512
STEPS = 96
SHAPE: dict[str, Any] = {
    "vocab_size": 65024, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 28,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 8192,
    "attention_bias": True, "rms_norm_eps": 1e-5, "pad_token_id": 0, "eos_token_id": [2], "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}  # fmt: skip
TINY = {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "head_dim": 32, "max_position_embeddings": 1024}  # fmt: skip


class Words:
    """A tokenizer whose every token is a word, and none an end: replies are as long as they are asked to be."""

    reply_leads = ()
    stop_ids: frozenset[int] = frozenset()

    def __init__(self, size: int) -> None:
        """Takes the vocabulary's size."""
        self.text_ids = frozenset(range(1, size))

    def stream(self) -> "Words":
        """Itself."""
        return self

    def push(self, token_id: int) -> str:
        """A word."""
        return " word"


def build(tiny: bool, device: torch.device) -> Any:
    """The model class at the real shape, its weights drawn on the device."""
    from transformers import GlmConfig, GlmForCausalLM

    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16 if device.type == "cuda" else torch.float32)
    with device:
        model = GlmForCausalLM(GlmConfig(**(SHAPE | (TINY if tiny else {}))))
    torch.set_default_dtype(default)
    return model.to(device).eval().requires_grad_(False)


class Reader:
    """Takes no notice of the text, but of when it came."""

    def __init__(self) -> None:
        """A reader."""
        from halfreel_runtime.cancel import CancelToken

        self.token = CancelToken()
        self.finished: Any = None
        self.times: list[float] = []

    def put(self, event: Any) -> None:
        """Text came."""
        self.times.append(time.perf_counter())

    def end(self, finished: Any, error: BaseException | None) -> None:
        """The reply is over."""
        if error is not None:
            raise error
        self.finished = finished


@dataclasses.dataclass
class Engine:
    """The server's engine without the server."""

    text_model: Any
    vocabulary_size: int

    @classmethod
    def of(cls, model: Any, slots: int, context: int, *, int8: bool, device: torch.device) -> "Engine":
        """Takes the weights out of the model."""
        from halfreel_llm.generation import TextModel
        from halfreel_llm.network import Network
        from halfreel_runtime.device import find_device
        from halfreel_runtime.memory import MemoryMonitor

        memory = MemoryMonitor(find_device(str(device)))
        network = Network(model, context, int8=int8)
        words: Any = Words(network.shape.vocabulary_size)
        text_model = TextModel(network, words, memory, slot_count=slots, context_token_count=context)
        return cls(text_model, network.shape.vocabulary_size)

    def request(self, number: int, prompt: int, output: int, temperature: float = 0.0) -> Any:
        """A request with a prompt that no other has."""
        from halfreel_llm.generation import TextRequest
        from halfreel_llm.sampling import SamplingSettings

        ids = torch.randint(1, self.vocabulary_size, (prompt,), generator=torch.Generator().manual_seed(number))
        sampling = SamplingSettings(temperature, 0.8 if temperature else 1.0, 0, number)
        return TextRequest(f"r{number}", tuple(ids.tolist()), output, sampling)

    def step_ms(self, rows: int, steps: int, prompt: int, temperature: float = 0.0) -> float:
        """The mean time of a step, all prompts read before."""
        batch, readers = self.text_model.batch, [Reader() for _ in range(rows)]
        with batch.session():
            for number, reader in enumerate(readers):
                batch.admit(self.request(rows * 1000 + number, prompt, steps + 60 + 2 * rows, temperature), reader)
            while any(place.reading for place in batch._places.values()):
                batch.step()
            for _ in range(8):
                batch.step()
            self.wait()
            began = time.perf_counter()
            for _ in range(steps):
                batch.step()
            self.wait()
            return (time.perf_counter() - began) * 1000 / steps

    def first_token_ms(self, prompt: int) -> float:
        """The median time from a request to its first token, nobody else there."""
        batch, taken = self.text_model.batch, []
        for number in range(6):
            reader = Reader()
            request = self.request(10**6 + 10 * prompt + number, prompt, 3)
            with batch.session():
                began = time.perf_counter()
                batch.admit(request, reader)
                while reader.finished is None:
                    batch.step()
            taken.append((reader.times[0] - began) * 1000)
        return statistics.median(taken[1:])

    def wait(self) -> None:
        """For the device."""
        if self.text_model.device.type == "cuda":
            torch.cuda.synchronize()


def profile(engine: Engine, rows: int) -> list[dict[str, Any]]:
    """The kernels of some steps, the longest first: microseconds a step and how often."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    batch, readers, steps = engine.text_model.batch, [Reader() for _ in range(rows)], 5
    with batch.session():
        for number, reader in enumerate(readers):
            batch.admit(engine.request(10**7 + number, 64, 60 + rows), reader)
        while any(place.reading for place in batch._places.values()):
            batch.step()
        for _ in range(3):
            batch.step()
        with profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
            for _ in range(steps):
                batch.step()
            engine.wait()
    found = [each for each in recorded.key_averages() if each.self_device_time_total > 0]
    found.sort(key=lambda each: -each.self_device_time_total)
    return [
        {"kernel": each.key[:90], "us": round(each.self_device_time_total / steps, 1), "times": each.count / steps}
        for each in found[:16]
    ]


def fetching_ahead(engine: Engine, steps: int, prompt: int) -> dict[str, float]:
    """One reply whose products fetch so many MiB of the next matrix while they end."""
    from halfreel_llm import product_kernels

    runner, taken = engine.text_model.runner, {}
    buckets, chosen = runner._buckets, product_kernels.AHEAD_BYTES
    runner._buckets = [1]
    for mib in (0, 1, 2, 4, 8):
        product_kernels.AHEAD_BYTES = mib << 20
        runner.capture()
        taken[f"ms_per_token_1_ahead_{mib}_mib"] = engine.step_ms(1, steps, prompt)
    runner._buckets, product_kernels.AHEAD_BYTES = buckets, chosen
    runner.capture()
    return taken


def copy_speed() -> float:
    """Terabytes a second of a large copy on the device, read and written: what the memory gives."""
    source = torch.randn(2**29, device="cuda", dtype=torch.float16)
    target, times = torch.empty_like(source), []
    for _ in range(8):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return 2 * source.numel() * 2 / sorted(times)[4] / 1e9


def _row(logits: Any) -> torch.Tensor:
    values: torch.Tensor = logits if isinstance(logits, torch.Tensor) else logits.values
    return values[0].float().cpu()


def against_class(engine: Engine, expected: torch.Tensor, ids: torch.Tensor) -> dict[str, float]:
    """How far the engine's logits are from those of the model class in the same arithmetic: piece and steps."""
    runner = engine.text_model.runner
    from halfreel_llm.sampling import SamplingSettings

    runner.begin(0, SamplingSettings(0.0, 1.0, 0, 0))
    given = []
    first = len(ids) - 8
    read: Any = runner.read(0, ids[:first].tolist(), 0, last=True)
    given.append(_row(read))
    for token in ids[first:].tolist():
        if hasattr(runner, "_tokens"):
            runner._tokens[0] = token
        else:
            runner._picked[0] = token
        written: Any = runner.write([0])
        given.append(_row(written))
    mine, theirs = torch.stack(given), expected[first - 1 :].float().cpu()
    return {
        "logits_distance": float((mine - theirs).norm() / theirs.norm()),
        "argmax_agreement": float((mine.argmax(1) == theirs.argmax(1)).float().mean()),
        "logits_max_difference": float((mine - theirs).abs().max()),
    }


def peer(name: str, tiny: bool) -> dict[str, float]:
    """One of transformers' own ways, in this process: milliseconds a token of one reply."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(tiny, device)
    ids = torch.randint(1, 1000, (1, 128), device=device)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    if name == "compiled":
        options["cache_implementation"] = "static"
    tokens = 64 if name == "compiled" else 24

    def run(count: int) -> float:
        torch.cuda.synchronize() if device.type == "cuda" else None
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
        torch.cuda.synchronize() if device.type == "cuda" else None
        return time.perf_counter() - began

    if name == "batching":
        return _batching(model, tiny)
    run(tokens)
    run(tokens)
    return {"ms": (run(tokens) - run(2)) * 1000 / (tokens - 2)}


def _batching(model: Any, tiny: bool) -> dict[str, float]:
    """Transformers' continuous batching: 16 requests of 64 tokens together."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    options = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=64)
    settings = ContinuousBatchingConfig(
        page_size=256, num_blocks=32, max_batch_tokens=2048, max_requests_per_batch=16, auto_switch_to_flash=False
    )
    prompts = [torch.randint(1, 1000, (64,)).tolist() for _ in range(16)]
    took = []
    for _ in range(2):
        began = time.perf_counter()
        model.generate_batch(inputs=prompts, generation_config=options, continuous_batching_config=settings)
        took.append(time.perf_counter() - began)
    return {"ms": took[-1] * 1000 / 64, "tok_s": 16 * 64 / took[-1]}


def main() -> None:
    """Measures, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--int8", action="store_true")
    arguments.add_argument("--peers", action="store_true")
    arguments.add_argument("--peer", default="", help="one of transformers' ways, in this process")
    arguments.add_argument("--profile", action="store_true")
    arguments.add_argument("--rows", default="1,8,64,256")
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    if read.peer:
        print(json.dumps(peer(read.peer, read.tiny)))
        return
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    rows = [int(each) for each in read.rows.split(",")]
    figures: dict[str, Any] = {}

    def tell(**values: Any) -> None:
        figures.update(values)
        print(json.dumps(values), flush=True)

    context = 1024 if read.tiny else 4096
    began = time.perf_counter()
    model = build(read.tiny, device)
    ids = torch.randint(1, 1000, (200,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(ids[None].to(device)).logits[0]
    engine = Engine.of(model, max(rows), context, int8=read.int8, device=device)
    del model
    engine.text_model.warm_up()
    network = engine.text_model.network
    tell(build_s=time.perf_counter() - began, step_gb=network.step_bytes / 1e9)
    if device.type == "cuda":
        speed = copy_speed()
        tell(floor_copy_tb_s=speed, floor_ms=network.step_bytes / 1e9 / speed)
    tell(runner=type(engine.text_model.runner).__name__, weight_gib=network.weight_bytes / 2**30)
    tell(**against_class(engine, expected, ids))
    steps, prompt = (8, 32) if read.tiny else (STEPS, PROMPT_TOKENS)
    for count in rows:
        taken = engine.step_ms(count, steps, prompt)
        tell(**{f"ms_per_token_{count}": taken, f"tok_s_{count}": count * 1000 / taken})
    tell(ms_per_token_1_sampled=engine.step_ms(1, steps, prompt, temperature=0.8))
    for length in (64, 512) if read.tiny else (512, 2048):
        tell(**{f"ttft_{length}_ms": engine.first_token_ms(length)})
    if device.type == "cuda":
        tell(**fetching_ahead(engine, steps, prompt))
        tell(reserved_gib=torch.cuda.max_memory_reserved() / 2**30)
    if read.profile and device.type == "cuda":
        for count in rows:
            for each in profile(engine, count):
                print(json.dumps({"rows": count} | each), flush=True)
    if read.peers:
        del engine
        for name in ("eager", "compiled", "batching"):
            command = [sys.executable, __file__, "--peer", name, *(["--tiny"] if read.tiny else [])]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=os.environ)
            lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
            tell(**{f"peer_transformers_{name}": json.loads(lines[-1]) if lines else ran.stderr[-300:]})
    line = result_of(figures, where=card(), libraries=("torch", "transformers"))
    if read.write:
        write_result(line, "llm_decode-int8" if read.int8 else "llm_decode", card())
    print(line)


if __name__ == "__main__":
    main()
