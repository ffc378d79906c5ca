"""How fast is vLLM on the same card with the same model: the language-model engine's peer.

    PYTHONPATH=... python benchmarks/llm_vllm.py [--limit-s 240] [--write]

vLLM in a process of its own, on ChatGLM3-6B's shape with random FP16 weights, no tokenizer and no prefix cache: one
reply's milliseconds a token, the time to a first token, and 64 and 256 replies together, as `llm_decode.py` and
`llm_serving.py` measure them here, but without a server. Each way of starting it has a process, which is ended at its
limit: `graphs` takes whole-step CUDA graphs of the model as it is written, the engine in the measuring process;
`compiled` is vLLM's own default, with torch.compile and the engine in a process beside it. The last line is the
result, the better of the ways figure by figure.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

VOCABULARY = 65024
OUTPUT = 512
SHAPE: dict[str, Any] = {
    "architectures": ["GlmForCausalLM"], "model_type": "glm", "vocab_size": VOCABULARY, "hidden_size": 4096,
    "intermediate_size": 13696, "num_hidden_layers": 28, "num_attention_heads": 32, "num_key_value_heads": 2,
    "head_dim": 128, "max_position_embeddings": 8192, "attention_bias": True, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "pad_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False, "dtype": "float16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Way:
    """How vLLM is started: its options and its environment."""

    options: dict[str, Any]
    environment: dict[str, str]


WAYS = {
    "graphs": Way(
        {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    ),
    "compiled": Way({}, {}),
}
# A way needs this long to start and to measure; with less left it is not begun.
LEAST_S = 60.0
# Figures of which less is better.
TIMES = ("ms_per_token_1", "ttft_512_ms", "ttft_2048_ms")
# Nothing is fetched or sent, and of the libraries that are not there (FlashInfer, DeepGEMM's headers) none is tried.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_DEEP_GEMM": "0", "VLLM_PLUGINS": "", "VLLM_HOST_IP": "127.0.0.1",
    "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1",
}  # fmt: skip


def measure(way: str) -> None:
    """One way, in this process: a line as each figure is known."""

    def tell(**values: Any) -> None:
        print(json.dumps({"way": way} | values), flush=True)

    began = time.monotonic()
    import torch
    import transformers
    import vllm

    tell(vllm=vllm.__version__, torch=torch.__version__, transformers=transformers.__version__)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
        engine = vllm.LLM(
            model=folder, load_format="dummy", dtype="float16", skip_tokenizer_init=True, max_model_len=4096,
            gpu_memory_utilization=0.6, max_num_seqs=256, seed=0, enable_prefix_caching=False, **WAYS[way].options,
        )  # fmt: skip
    tell(start_s=round(time.monotonic() - began, 1))
    drawn = random.Random(0)

    def run(count: int, prompt: int, output: int) -> float:
        """Seconds for so many replies of that length to prompts that no other has."""
        prompts = [{"prompt_token_ids": [drawn.randrange(3, VOCABULARY) for _ in range(prompt)]} for _ in range(count)]
        settings = vllm.SamplingParams(
            max_tokens=output, min_tokens=output, ignore_eos=True, temperature=0.0, detokenize=False
        )
        began = time.perf_counter()
        replies = engine.generate(prompts, settings, use_tqdm=False)
        taken = time.perf_counter() - began
        written = sum(len(reply.outputs[0].token_ids) for reply in replies)
        if written != count * output:
            raise RuntimeError(f"{written} tokens came of {count * output}")
        return taken

    run(1, 512, 16)
    run(8, 64, 16)
    first = {}
    for prompt in (512, 2048):
        run(1, prompt, 1)
        first[prompt] = statistics.median(run(1, prompt, 1) for _ in range(5))
        tell(**{f"ttft_{prompt}_ms": first[prompt] * 1000})
    tell(ms_per_token_1=min(run(1, 512, 257) - first[512] for _ in range(2)) * 1000 / 256)
    for count in (64, 256):
        tell(**{f"tok_s_{count}": count * OUTPUT / run(count, 512, OUTPUT)})


def measured(way: str, within_s: float) -> dict[str, Any]:
    """One way in a process of its own, which is ended at the limit: what it had told by then."""
    told: dict[str, Any] = {}
    stopped = threading.Event()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--way", way], env=os.environ | ENVIRONMENT | WAYS[way].environment,
            stdout=subprocess.PIPE, stderr=errors, start_new_session=True, text=True, errors="replace",
        )  # fmt: skip

        def stop() -> None:
            # A way starts processes of its own, compilers and the engine's: they are in its group, and end with it.
            stopped.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(within_s, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith('{"way"'):
                    sys.stderr.write(line)
                    continue
                print(line, end="", flush=True)
                told |= json.loads(line)
            process.wait(within_s)
        finally:
            timer.cancel()
            late = stopped.is_set()
            stop()
            process.wait(20)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    sys.stderr.write(said[-6000:] + "\n")
    if late:
        told["stopped_after_s"] = round(within_s)
    elif process.returncode:
        told["error"] = said.splitlines()[-1][:300] if said else f"exit {process.returncode}"
    if process.returncode:
        print(json.dumps({"way": way, "error": told.get("error", "its time was over")}), flush=True)
    return told


def main() -> None:
    """Measures, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--way", choices=tuple(WAYS), help="one way, in this process")
    arguments.add_argument("--limit-s", type=float, default=240.0, help="seconds for all ways together")
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    if read.way:
        measure(read.way)
        return
    from llm_bench import card, result_of, write_result

    ends = time.monotonic() + read.limit_s - 10
    figures: dict[str, Any] = {}
    for way in WAYS:
        left = ends - time.monotonic()
        told = measured(way, left) if left > LEAST_S else {"error": "no time was left"}
        told.pop("way", None)
        versions = {name: told.pop(name) for name in ("vllm", "torch", "transformers") if name in told}
        figures |= {f"{way}_{name}": value for name, value in (told | versions).items()}
        for name in (*TIMES, "tok_s_64", "tok_s_256"):
            if name in told:
                better = min if name in TIMES else max
                figures[name] = better(figures.get(name, told[name]), told[name])
    figures["peer_vllm_ms"] = figures.get("ms_per_token_1")
    where = card()
    line = result_of(figures, where=where, libraries=("vllm", "torch", "transformers"))
    if read.write:
        write_result(line, "llm_vllm", where)
    print(line)


if __name__ == "__main__":
    main()
