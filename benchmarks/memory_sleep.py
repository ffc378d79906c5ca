"""How long does a model take to leave the card and to come back, and does the card have its bytes meanwhile?

    python benchmarks/memory_sleep.py [--rounds 5] [--out FILE]

ChatGLM3-6B in FP16 with random weights, by the way of the servers: `HostedWeights` under a `Sleeper`. The freed bytes
are the driver's (NVML). After every wake the weights are held against a sum made before, and the logits of one prompt
against those before, bit by bit. --tiny tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from transformers import GlmConfig, GlmForCausalLM

from halfreel_runtime.device import find_device
from halfreel_runtime.host_memory import host_memory
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.sleeper import Sleeper
from halfreel_runtime.weights_host import HostedWeights

GIB = 2**30
# ChatGLM3-6B as transformers' own class has it: 6,243,584,000 parameters.
CHATGLM3 = {
    "vocab_size": 65024,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 8192,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
TINY = CHATGLM3 | {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def make_model(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> GlmForCausalLM:
    """The network with random weights, made where it stays."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = GlmForCausalLM(GlmConfig(**config)).to(dtype)
    model = model.to_empty(device=device)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.02)
    return model.eval().requires_grad_(False)


def sums(model: torch.nn.Module) -> list[int]:
    """A sum over the bits of every weight."""
    return [int(each.view(torch.int16).sum(dtype=torch.int64)) for each in model.parameters()]


def logits(model: Any, device: torch.device) -> torch.Tensor:
    """What the model makes of one prompt."""
    with torch.inference_mode():
        ids = torch.arange(32, device=device)[None]
        return model(input_ids=ids, use_cache=False).logits[0, -1].float().cpu()


def measure(rounds: int, *, tiny: bool) -> tuple[dict[str, Any], str]:
    """Sleeps and wakes so often; returns the figures and the card's name."""
    found = find_device("auto")
    memory = MemoryMonitor(found)
    device = torch.device(found.torch_name)
    model = make_model(TINY if tiny else CHATGLM3, device, torch.float16 if found.kind == "cuda" else torch.bfloat16)
    weights = HostedWeights([model], device)
    before, said = sums(model), logits(model, device)
    memory.clear()
    sleeper = Sleeper(memory)
    host_before = host_memory().available_bytes
    began_at = time.perf_counter()
    weights.prepare_sleep()
    if weights._pinning is not None:
        weights._pinning.join()
    pin_s = time.perf_counter() - began_at
    sleeper.model_loaded(weights)
    out_s, in_s, returned, asleep = [], [], [], []
    unchanged = True
    for _ in range(rounds):
        if found.kind == "cuda":
            torch.cuda.synchronize()
        moved = sleeper.sleep()
        out_s.append(moved.seconds)
        returned.append(moved.freed_bytes / weights.weight_bytes)
        live = memory.live()
        asleep.append((live.allocated, live.reserved))
        sleeper.wake()
        in_s.append(sleeper.last_wake_s)
        unchanged = unchanged and sums(model) == before and torch.equal(logits(model, device), said)
        memory.clear()  # the logits' workspace would be counted against the next round
        print(json.dumps({"out_s": out_s[-1], "in_s": in_s[-1], "returned": returned[-1], "asleep": asleep[-1]}))
    figures = {
        "weight_bytes": weights.weight_bytes,
        "out_s": round(statistics.median(out_s), 4),
        "in_s": round(statistics.median(in_s), 4),
        "out_s_first": round(out_s[0], 4),
        "out_s_max": round(max(out_s), 4),
        "in_s_max": round(max(in_s), 4),
        "returned_ratio": round(min(returned), 5),
        "asleep_allocated_bytes": max(each for each, _ in asleep),
        "asleep_reserved_bytes": max(each for _, each in asleep),
        "place": weights.place,
        "pin_s": round(pin_s, 3),
        "host_bytes": host_before - host_memory().available_bytes,
        "unchanged": unchanged,
        "rounds": rounds,
    }
    return figures, found.name


def main() -> None:
    """Measures, and prints one JSON line last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--out", type=Path, help="file to write the line into as well")
    read = arguments.parse_args()
    figures, card = measure(read.rounds, tiny=read.tiny)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "card": card,
        "commit": head.stdout.strip(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "figures": figures,
    }
    line = json.dumps(result)
    if read.out is not None:
        read.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
