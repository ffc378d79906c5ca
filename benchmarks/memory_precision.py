"""What does FP16 save against FP32, in memory and in time, on real sizes?

    python benchmarks/memory_precision.py [--tiny] [--out FOLDER]

SVD-XT with its keyframe model, everything resident (balanced), 25 frames of 1024x576, and ChatGLM3-6B with one slot:
each precision in a process of its own, as a server would be. Of the clip a few steps are run and the clip's time is
reckoned from their median: 25 of them, and what the other phases took. Loading is the way of all weights from pinned
host memory to the card, as after sleep. The language model writes a reply of 64 tokens after a prompt of 512, by its
graphs in FP16, and kernel by kernel in FP32, which they are not for.
Likeness is measured with the trained pocket models, by `halfreel bench precision`: random weights draw nothing to
compare.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from memory_card import GIB, Rig, arguments, say, write

from halfreel_video.levers import Levers
from halfreel_video.measurement import Measurement

STEP_COUNT = 3
WHOLE_STEP_COUNT = 25


def one_precision(rig: Rig, out: Path | None) -> dict[str, Any]:
    """The figures of the precision that the model is in."""
    model, measurement, levers = rig.model, Measurement(rig.model), Levers()
    model.layout.arrange(levers)
    clip = rig.clip(levers=levers, step_count=2 if rig.tiny else STEP_COUNT)
    with rig.watched() as seen:
        picture, drawn = measurement.keyframe(clip)
        conditioning, looked, encoded = measurement.encode(clip, picture)
        denoise_bytes, decode_bytes = rig.held(clip)
        latents, denoised = measurement.denoise(clip, conditioning, timed=True, cap_bytes=denoise_bytes)
        _, decoded = measurement.decode(latents, levers, cap_bytes=decode_bytes)
    phases = (drawn, looked, encoded, denoised, decoded)
    step_s = statistics.median(denoised.piece_s[1:])
    others_s = sum(each.seconds for each in phases if each is not denoised)
    figures = {
        "dtype": model.dtype_name,
        "weight_gib": round(model.weights.weight_bytes / GIB, 4),
        "device_peak_gib": round(max(seen) / GIB, 4),
        "reserved_gib": round(max(each.reserved_bytes for each in phases) / GIB, 4),
        "allocated_gib": round(max(each.allocated_bytes for each in phases) / GIB, 4),
        "step_s": round(step_s, 4),
        "step_s_all": [round(each, 4) for each in denoised.piece_s],
        "decode_s": round(decoded.seconds, 4),
        "clip_s_reckoned": round(WHOLE_STEP_COUNT * step_s + others_s, 3),
        "load_s": round(_load_s(rig), 4),
    }
    say(**figures)
    write(out, f"memory_precision_{model.dtype_name}", rig.device.name, figures)
    return figures


def _load_s(rig: Rig) -> float:
    layout, seconds = rig.model.layout, []
    for _ in range(3):
        layout.park_all()
        began_at = time.monotonic()
        layout.bring_all()
        if rig.device.kind == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began_at)
    return statistics.median(seconds)


def one_llm(dtype: torch.dtype, *, tiny: bool) -> dict[str, Any]:
    """The language model's figures in one precision."""
    import llm_decode

    from halfreel_runtime.weights_host import HostedWeights

    device = torch.device("cpu" if tiny else "cuda:0")
    model = llm_decode.build(tiny, device).to(dtype)
    engine = llm_decode.Engine.of(model, 1, 1024, int8=False, device=device)
    del model
    text_model = engine.text_model
    text_model.warm_up()
    gc.collect()
    if not tiny:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    first_ms, step_ms = engine.first_token_ms(64 if tiny else 512), engine.step_ms(1, 64, 64 if tiny else 512)
    reserved = 0 if tiny else torch.cuda.max_memory_reserved()
    hosted, seconds = HostedWeights([text_model.network], device), []
    hosted.prepare_sleep()
    for _ in range(3):
        hosted.sleep()
        began_at = time.monotonic()
        hosted.wake()
        if not tiny:
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began_at)
    figures = {
        "dtype": str(dtype).removeprefix("torch."),
        "weight_gib": round(text_model.network.weight_bytes / GIB, 4),
        "reserved_gib": round(reserved / GIB, 4),
        "first_token_ms": round(first_ms, 3),
        "token_ms": round(step_ms, 3),
        "reply_s": round((first_ms + 63 * step_ms) / 1000, 4),
        "load_s": round(statistics.median(seconds), 4),
    }
    say(llm=figures)
    return figures


def llm_ratios(half: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """FP16 over FP32, of the language model."""
    return {
        "saving_llm": round(1 - half["reserved_gib"] / full["reserved_gib"], 4) if full["reserved_gib"] else 0,
        "saving_llm_weights": round(1 - half["weight_gib"] / full["weight_gib"], 4),
        "load_ratio_llm": round(half["load_s"] / full["load_s"], 4),
        "generate_ratio_llm": round(half["reply_s"] / full["reply_s"], 4),
        "llm_float16": half,
        "llm_float32": full,
    }


def ratios(half: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """FP16 over FP32, as the report that started this project asks for them."""
    return {
        "saving_video": round(1 - half["device_peak_gib"] / full["device_peak_gib"], 4)
        if full["device_peak_gib"]
        else 0,
        "saving_video_weights": round(1 - half["weight_gib"] / full["weight_gib"], 4),
        "load_ratio": round(half["load_s"] / full["load_s"], 4),
        "generate_ratio": round(half["clip_s_reckoned"] / full["clip_s_reckoned"], 4),
        "float16": half,
        "float32": full,
    }


def main() -> None:
    """Measures each precision in a process of its own, and prints one JSON line last."""
    alone = {"default": "", "help": "one precision of one model alone, in this process"}
    read = arguments(__doc__ or "", dtype=alone, llm=alone)
    if read.dtype:
        print(json.dumps(one_precision(Rig(tiny=read.tiny, dtype=getattr(torch, read.dtype)), read.out)))
        return
    if read.llm:
        print(json.dumps(one_llm(getattr(torch, read.llm), tiny=read.tiny)))
        return

    def both(flag: str) -> list[dict[str, Any]]:
        found = []
        for dtype in ("float16", "float32"):
            command = [sys.executable, str(Path(__file__)), flag, dtype, *(["--tiny"] if read.tiny else [])]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=120).stdout
            found.append(json.loads(output.splitlines()[-1]))
        return found

    card = "cpu" if read.tiny else torch.cuda.get_device_name()
    figures = ratios(*both("--dtype")) | llm_ratios(*both("--llm"))
    print(write(read.out, "memory_precision", card, figures))


if __name__ == "__main__":
    main()
