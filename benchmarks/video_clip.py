"""Seconds of a clip, a step and the VAE, peak memory and likeness: diffusers as it comes against ours, in one process.

    python benchmarks/video_clip.py --model pocket|real|tiny [--step-count 4] [--rounds 3] [--out FOLDER]

The same seed and first picture for all; clips alternate, so that what else the machine does falls on all alike. A clip
is timed from its first picture to its RGB frames. `real` is SVD-XT with random weights, built on the GPU: memory and
speed do not depend on the values; 25 frames of 1024x576 with guidance, FP16, and FP32 once to hold all against.
`pocket` is the trained pocket model as the server has it. `tiny` only tries the script. With fewer steps than a whole
clip has, seconds of a clip are not told.

Variants: "diffusers" (StableVideoDiffusionPipeline as it comes, decode chunk 8), "exact" (the server's, uncompiled),
each trade; then those that change the layers, one after the other: "attention" (the exact one by the attention kernels
that a probe finds fastest, PyTorch's default otherwise), "channels_last" (of the exact one, uncompiled), "fused" and
"fused_product" (blocks in fewer passes over memory, without a compiler; convolutions over frames as those of a picture,
or as products added up), "fused_graph" (a CUDA graph on top of it), "profile" (renders no clip: where the time of a
step and of decoding goes, for the exact one and the fused one), and "diffusers_compiled" (`torch.compile` of diffusers'
UNet and of the VAE's decoder). "kernels" times each attention kernel on the classes of
shape. Every part has its own time limit; what fails says so and ends alone.
"""

# ruff: noqa: E402 - the allocator and the hub client are told before torch and diffusers are imported

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "gpu"), str(ROOT / "benchmarks")]

import numpy as np
import torch

from halfreel_video.quiet import quiet_libraries

quiet_libraries()

from likeness import psnr_db, ssim
from memory_card import limited, run_part, say, write
from video_bench import SIZES, Bench, Taken
from video_variants import heavy_variants, tell_kernels

from halfreel_video.trades import TRADES

GIB = 2**30
UNET_TFLOP = 159.9  # of a step with guidance, 25 frames of 1024x576
HEAVY = (
    "attention",
    "channels_last",
    "fused",
    "fused_product",
    "fused_graph",
    "profile",
    "diffusers_compiled",
)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All variants, round after round."""
    deadline = time.monotonic() + arguments.budget_s
    bench = Bench(arguments)
    card = torch.cuda.get_device_name(0) if bench.on_gpu else "cpu"
    say(part="built", seconds=round(bench.built_s, 2), card=card, torch=torch.__version__)
    taken: dict[str, Taken] = {}
    reference = bench.in_fp32() if bench.on_gpu and "fp32" in arguments.variants else None
    made: dict[str, Callable[[Taken], Any]] = {
        "diffusers": bench.as_it_comes,
        "exact": bench.exact,
    }
    for trade in TRADES:
        made[trade] = lambda taken, trade=trade: bench.ours(taken, bench.lean, (trade,))
    made["both_trades"] = lambda taken: bench.ours(taken, bench.lean, TRADES)

    def one(name: str, *, warm_up: bool = False) -> None:
        bench.clear()
        mine = taken.setdefault(name, Taken())
        given = Taken() if warm_up else mine
        step_count = len(given.step_s)
        mine.frames = made[name](given)
        if bench.on_gpu:
            mine.peak_bytes = max(mine.peak_bytes, torch.cuda.max_memory_allocated())
        say(
            part=name,
            warm_up=warm_up,
            clip_s=round(given.clip_s[-1], 3),
            step_ms=[round(1000 * each, 2) for each in given.step_s[step_count:]],
            vae_s=round(given.vae_s[-1], 3),
        )

    def part(name: str, *, warm_up: bool = False) -> None:
        left = int(deadline - time.monotonic())
        if left < 1:
            say(part=name, left_out="no time is left")
            return
        try:
            with limited(left):
                one(name, warm_up=warm_up)
        except Exception as error:
            say(part=name, failed=f"{type(error).__name__}: {error}"[:300])
            traceback.print_exc(limit=-4)

    names = [name for name in made if name in arguments.variants]
    for name in names:
        part(name, warm_up=True)
    for _ in range(arguments.rounds):
        for name in names:
            part(name)
    if "kernels" in arguments.variants:
        run_part("kernels", arguments.part_s, lambda: tell_kernels(bench))
    # These change the layers, so that they come last.
    for name, prepare in heavy_variants(bench, arguments.backend).items():
        if name not in arguments.variants:
            continue
        began_at, left = time.monotonic(), min(arguments.part_s, int(deadline - time.monotonic()))
        if left < 1:
            say(part=name, left_out="no time is left")
            continue
        made[name] = run_part(f"{name}, prepared", left, prepare)
        if made[name] is None:
            continue
        part(name, warm_up=True)
        if name in taken:
            taken[name].prepared_s = time.monotonic() - began_at
        for _ in range(arguments.rounds):
            part(name)
        made.pop(name)
    return figures(bench, taken, reference)


def figures(bench: Bench, taken: dict[str, Taken], reference: Any) -> dict[str, Any]:
    """What is told, by variant and by the names that are kept over time."""
    variants: dict[str, Any] = {}
    base = taken.get("diffusers")
    for name, each in taken.items():
        if not each.clip_s:
            continue
        mine: dict[str, Any] = {
            "step_ms": round(1000 * statistics.mean(each.step_s), 2) if each.step_s else None,
            "vae_s": round(statistics.median(each.vae_s), 4),
            "clip_s": round(statistics.median(each.clip_s), 3) if bench.whole else None,
            "step_count": bench.step_count,
            "clips": len(each.clip_s),
        }
        if each.prepared_s:
            mine["first_clip_s"] = round(each.prepared_s, 1)
        if bench.on_gpu:
            mine["peak_gib"] = round(each.peak_bytes / GIB, 3)
            if bench.clip.frame_count == 25 and each.step_s and "trade" not in name and name not in TRADES:
                mine["unet_tflop_s"] = round(UNET_TFLOP / statistics.mean(each.step_s), 1)
        for label, other in (("fp32", reference), ("diffusers", base.frames if base else None)):
            if other is not None and name != label:
                mine[f"psnr_to_{label}_db"] = _finite(psnr_db(each.frames, other))
                mine[f"ssim_to_{label}"] = round(ssim(each.frames, other), 5)
                mine[f"max_to_{label}"] = int(np.abs(each.frames.astype(int) - other).max())
        variants[name] = mine
    found: dict[str, Any] = {"model_clip": list(SIZES["real"]) if bench.on_gpu else None, "variants": variants}
    ours, theirs = variants.get("exact"), variants.get("diffusers")
    if ours and theirs:
        found |= {"step_ms": ours["step_ms"], "step_diffusers_ms": theirs["step_ms"], "vae_s": ours["vae_s"]}
        found |= {"clip_s": ours["clip_s"], "clip_diffusers_s": theirs["clip_s"]}
        # Of clips that were rendered side by side, so that a slow moment falls on both.
        pairs = zip(taken["exact"].clip_s, taken["diffusers"].clip_s, strict=False)
        found["clip_ratio"] = round(statistics.median(one / other for one, other in pairs), 4)
        found["peak_gib"] = ours.get("peak_gib")
        found["preview_ms"] = round(1000 * statistics.median(taken["exact"].preview_s), 2)
        found["preview_to_step_ratio"] = round(found["preview_ms"] / found["step_ms"], 4)
        if "psnr_to_fp32_db" in ours and "psnr_to_fp32_db" in theirs:
            found["psnr_margin_db"] = round(ours["psnr_to_fp32_db"] - theirs["psnr_to_fp32_db"], 3)
    return found


def _finite(value: float) -> float | None:
    """JSON has no infinity: None where two clips are the same."""
    return round(value, 3) if math.isfinite(value) else None


def main() -> None:
    """Prints one JSON line a part, and the result last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("pocket", "real", "tiny"), default="pocket")
    parser.add_argument("--variants", default="", help="comma-separated; on a CPU those that change no layers")
    parser.add_argument("--step-count", type=int, default=0, help="0 takes the model's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=3600.0, help="parts that begin later are left out")
    parser.add_argument("--part-s", type=int, default=120, help="limit of each preparation")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; eager tries the script without")
    parser.add_argument("--thread-count", type=int, default=0)
    parser.add_argument("--card", default="cpu", help="in the name of the result: h200, h100 or cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.thread_count:
        torch.set_num_threads(arguments.thread_count)
    torch.backends.cudnn.deterministic = True  # as the server
    usual = ["fp32", "diffusers", "exact", *TRADES, "both_trades"]
    heavy = ["kernels", *HEAVY] if arguments.model == "real" else []
    arguments.variants = arguments.variants.split(",") if arguments.variants else usual + heavy
    with torch.no_grad():
        found = run(arguments)
    print(json.dumps(json.loads(write(arguments.out, f"video_clip-{arguments.card}", arguments.card, found))))


if __name__ == "__main__":
    main()
