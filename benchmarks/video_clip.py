"""Seconds of a clip, a step and the VAE, peak memory and likeness: diffusers as it comes against ours, in one process.

    python benchmarks/video_clip.py --model pocket|real|tiny [--step-count 4] [--rounds 3] [--out FOLDER]

The same seed and first picture for all; clips alternate, so that what else the machine does falls on all alike. A clip
is timed from its first picture to its RGB frames. `real` is SVD-XT with random weights, built on the GPU: memory and
speed do not depend on the values; 25 frames of 1024x576 with guidance, FP16, and FP32 once to hold all against.
`pocket` is the trained pocket model as the server has it. `tiny` only tries the script. With fewer steps than a whole
clip has, seconds of a clip are not told.

Variants: "diffusers" (StableVideoDiffusionPipeline as it comes, decode chunk 8), "exact" (the server's, uncompiled),
each trade; then those that change the layers, one after the other: "attention" (the exact one by the attention kernels
that a probe finds fastest, PyTorch's default otherwise), "channels_last" (of the exact one, uncompiled), "compiled" and
"compiled_product" (the server's compiled blocks, with convolutions over frames as those of a picture, or as one matrix
product), "compiled_attention" (with those kernels too), "graph" (a CUDA graph of a whole pass of the UNet on top of
that), and "diffusers_compiled" (`torch.compile` of diffusers' UNet and of the VAE's decoder). "kernels" times each
attention kernel on the classes of shape. Every part has its own time limit; what fails says so and ends alone.
"""

# ruff: noqa: E402 - the allocator and the hub client are told before torch and diffusers are imported

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "gpu"), str(ROOT / "benchmarks")]

import numpy as np
import torch
from PIL import Image

from halfreel_video.quiet import quiet_libraries

quiet_libraries()

import make_svd_xt
from likeness import psnr_db, ssim
from memory_card import limited, run_part, say, write

from halfreel_video.attention_kernels import SHAPES, ChosenAttention, fastest_kernels, kernel_seconds
from halfreel_video.clip import ClipRequest
from halfreel_video.compiled import CompiledBlocks
from halfreel_video.folder import KEYFRAME, SVD, open_folder
from halfreel_video.lean_unet import make_lean
from halfreel_video.levers import Levers
from halfreel_video.loading import load_keyframe, load_svd
from halfreel_video.preview import LatentColours
from halfreel_video.svd import Denoising, decode, encode
from halfreel_video.trades import TRADES

GIB = 2**30
UNET_TFLOP = 159.9  # of a step with guidance, 25 frames of 1024x576
_PREVIEW_COUNT = 20
HEAVY = (
    "attention",
    "channels_last",
    "compiled",
    "compiled_product",
    "compiled_attention",
    "graph",
    "diffusers_compiled",
)
SIZES = {"real": (1024, 576, 25), "tiny": (64, 64, 5)}


@dataclass
class Taken:
    """What one variant's clips took; the first clip of each is a warm-up and counts for nothing but its frames."""

    clip_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    vae_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    frames: Any = None
    prepared_s: float = 0.0
    previews: bool = False
    preview_s: list[float] = field(default_factory=list)


class Bench:
    """One pipeline in one arithmetic, and its clip."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device("cuda:0" if arguments.model == "real" else "cpu")
        self.on_gpu = self.device.type == "cuda"
        began_at = time.monotonic()
        self.pipeline, (width, height, frame_count), steps, scale, picture = load(arguments.model, self.device)
        self.unet = self.pipeline.unet  # as it comes
        self.lean = copy.deepcopy(self.unet)
        make_lean(self.lean)
        if picture is None:
            noise = np.random.default_rng(1).integers(0, 255, (9, 16, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        self.picture = picture
        self.step_count = arguments.step_count or steps
        self.whole = self.step_count == steps
        self.clip = ClipRequest(
            request_id="clip",
            prompt="",
            image=picture,
            width_px=width,
            height_px=height,
            frame_count=frame_count,
            step_count=self.step_count,
            fps=7,
            motion_bucket=127,
            guidance_scale=scale,
            seed=1,
            preview=False,
            levers=Levers(),
            segment_frame_count=frame_count,
        )
        self.colours = LatentColours(self.pipeline)
        self.built_s = time.monotonic() - began_at

    def sync(self) -> None:
        """Waits for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Frees what the variant before left."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def as_it_comes(self, taken: Taken, unet: Any = None) -> Any:
        """The call of diffusers; steps are told apart by its callback, which waits for the device."""
        stamps: list[float] = []

        def stamp(_pipeline: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            self.sync()
            stamps.append(time.monotonic())
            return values

        clip = self.clip
        self.pipeline.unet = unet if unet is not None else self.unet
        self.sync()
        began_at = time.monotonic()
        pictures = self.pipeline(
            self.picture,
            height=clip.height_px,
            width=clip.width_px,
            num_frames=clip.frame_count,
            num_inference_steps=clip.step_count,
            fps=clip.fps,
            motion_bucket_id=clip.motion_bucket,
            max_guidance_scale=clip.guidance_scale,
            decode_chunk_size=8,
            generator=torch.Generator("cpu").manual_seed(clip.seed),
            callback_on_step_end=stamp,
        ).frames[0]
        ended_at = time.monotonic()
        taken.clip_s.append(ended_at - began_at)
        taken.step_s += np.diff(stamps).tolist()
        taken.vae_s.append(ended_at - stamps[-1])
        return np.stack([np.asarray(each) for each in pictures])

    def ours(self, taken: Taken, unet: Any, trades: tuple[str, ...] = ()) -> Any:
        """The server's loops, to RGB frames."""
        self.pipeline.unet = unet
        clip = ClipRequest(**(vars(self.clip) | {"trades": trades}))
        self.sync()
        began_at = time.monotonic()
        generator = torch.Generator("cpu").manual_seed(clip.seed)
        conditioning = encode(self.pipeline, self.picture, clip, clip.frame_count, generator)
        denoising = Denoising(self.pipeline, conditioning, clip, generator)
        stamps: list[float] = []
        while denoising.done_count < denoising.step_count:
            if (shown := denoising.advance()) is not None:
                stamps.append(time.monotonic())
        for _ in range(_PREVIEW_COUNT if taken.previews else 0):
            drawn_at = time.monotonic()
            self.colours.jpeg(shown)
            taken.preview_s.append(time.monotonic() - drawn_at)
            stamps[-1] += taken.preview_s[-1]  # so that the VAE's time is its own
            began_at += taken.preview_s[-1]
        frames = np.concatenate(list(decode(self.pipeline, denoising.latents, 8)))
        ended_at = time.monotonic()
        taken.clip_s.append(ended_at - began_at)
        taken.vae_s.append(ended_at - stamps[-1])
        stamps[-1] -= sum(taken.preview_s[-_PREVIEW_COUNT:])
        taken.step_s += np.diff(stamps).tolist()
        return frames

    def exact(self, taken: Taken) -> Any:
        """The server's clip as it is without trades, and what a preview takes."""
        taken.previews = True
        return self.ours(taken, self.lean)

    def in_fp32(self) -> Any:
        """The clip in FP32, by diffusers' own UNet; the parts come back as they were."""
        half = next(self.unet.parameters()).dtype
        parts = (self.unet, self.pipeline.vae, self.pipeline.image_encoder)
        for part in parts:
            torch.nn.Module.to(part, torch.float32)
        try:
            return self.as_it_comes(Taken())
        finally:
            for part in parts:
                torch.nn.Module.to(part, half)


def load(name: str, device: torch.device) -> tuple[Any, tuple[int, int, int], int, float, Any]:
    """A pipeline, its clip's size, steps and guidance, and a first picture where the model draws one."""
    if name == "pocket":
        from halfreel_video.keyframe import draw_keyframe
        from halfreel_video.keyframe_defaults import KeyframeDefaults
        from halfreel_video.model import ClipDefaults

        folder, keyframe_folder = open_folder("pocket", SVD), open_folder("pocket", KEYFRAME)
        pipeline = load_svd(folder, torch.float32, device)
        # Ours is a copy: diffusers' own forward is put back.
        pipeline.unet = pristine(pipeline.unet)
        keyframe = load_keyframe(keyframe_folder, torch.float32, device)
        defaults = ClipDefaults.of(folder, int(pipeline.unet.config.num_frames))
        size = defaults.width_px, defaults.height_px, defaults.frame_count
        drawn = KeyframeDefaults.of(keyframe_folder, keyframe)
        picture = draw_keyframe(keyframe, drawn, "a red circle moving over a blue sky", size[0], size[1], 1)
        return pipeline, size, defaults.step_count, defaults.guidance_scale, picture
    torch.manual_seed(0)
    pipeline = make_svd_xt.svd_xt(make_svd_xt.SIZES[name], device)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.image_encoder):
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        torch.nn.Module.to(part, device, dtype).eval().requires_grad_(False)
    return pipeline, SIZES[name], 25, 3.0, None


def pristine(unet: Any) -> Any:
    """The same weights under diffusers' own forward."""
    fresh = type(unet).from_config(unet.config).eval().requires_grad_(False)
    fresh.load_state_dict(unet.state_dict())
    return fresh


def channels_last(module: Any) -> Any:
    """Has the weights of convolutions in the order that their kernels like."""
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.to(memory_format=torch.channels_last)
        elif isinstance(part, torch.nn.Conv3d):
            part.to(memory_format=torch.channels_last_3d)
    return module


def graphed(unet: Any) -> Callable[..., Any]:
    """The UNet's pass as one CUDA graph a choice of halves, where its weights stay; as it is at a clip's first step."""
    captured: dict[Any, Any] = {}

    def run(sample: torch.Tensor, timestep: torch.Tensor, **named: Any) -> Any:
        kept = named["kept"]
        if not kept.values or not sample.is_cuda:  # what is computed once a clip is not there yet
            return unet(sample, timestep, **named)
        key = id(kept)
        if key not in captured:
            inputs = sample.clone(), timestep.clone()
            graph = torch.cuda.CUDAGraph()
            unet(*inputs, **named)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                result = unet(*inputs, **named)
            captured.clear()
            captured[key] = graph, inputs, result, kept
        graph, inputs, result, _ = captured[key]
        inputs[0].copy_(sample)
        inputs[1].copy_(timestep)
        graph.replay()
        return (result[0].clone(),)

    return run


class Graphed(torch.nn.Module):
    """Stands in for a UNet whose pass is replayed."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet, self.config, self.lean = unet, unet.config, unet.lean
        self.add_embedding = unet.add_embedding
        self._run = graphed(unet)

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's arithmetic."""
        return self.unet.dtype

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As the UNet's."""
        return self._run(*arguments, **named)


def heavy_variants(bench: Bench, backend: str) -> dict[str, Callable[[], Callable[[Taken], Any]]]:
    """What changes layers: each prepares itself when it is called, and gives what renders its clip."""
    pipeline, plain_vae = bench.pipeline, bench.pipeline.vae

    def fresh() -> Any:
        pipeline.vae = plain_vae
        pipeline.unet = copy.deepcopy(bench.unet)
        make_lean(pipeline.unet)
        return pipeline.unet

    def attention(unet: Any) -> None:
        dtype = next(unet.parameters()).dtype
        kernels = fastest_kernels(bench.device, dtype) if bench.on_gpu else {"temporal": "math"}
        say(part="attention", kernels=kernels)
        unet.set_attn_processor(ChosenAttention(kernels))

    def by_attention() -> Callable[[Taken], Any]:
        unet = fresh()
        attention(unet)
        return lambda taken: bench.ours(taken, unet)

    def by_channels_last() -> Callable[[Taken], Any]:
        unet = channels_last(fresh())
        return lambda taken: bench.ours(taken, unet)

    def by_compiler(temporal: Any = "picture", *, chosen: bool = False, graph: bool = False) -> Callable[[Taken], Any]:
        unet = fresh()
        pipeline.vae = copy.deepcopy(plain_vae)
        if chosen:
            attention(unet)
        blocks, began_at = CompiledBlocks(pipeline, temporal=temporal, backend=backend), time.monotonic()
        if not blocks.compile_all():
            raise RuntimeError(blocks.problem)
        say(part="compile", temporal=temporal, seconds=round(time.monotonic() - began_at, 1))
        blocks.use(True)
        shown, vae = Graphed(unet) if graph else unet, pipeline.vae

        def render(taken: Taken) -> Any:
            pipeline.vae = vae
            return bench.ours(taken, shown)

        return render

    def diffusers_compiled() -> Callable[[Taken], Any]:
        pipeline.vae = copy.deepcopy(plain_vae)
        unet, vae = channels_last(copy.deepcopy(bench.unet)), pipeline.vae
        unet.forward = torch.compile(unet.forward, backend=backend)
        vae.decoder.forward = torch.compile(channels_last(vae.decoder).forward, backend=backend)

        def render(taken: Taken) -> Any:
            pipeline.vae = vae
            return bench.as_it_comes(taken, unet)

        return render

    return {
        "attention": by_attention,
        "channels_last": by_channels_last,
        "compiled": by_compiler,
        "compiled_product": lambda: by_compiler("product"),
        "compiled_attention": lambda: by_compiler(chosen=True),
        "graph": lambda: by_compiler(chosen=True, graph=True),
        "diffusers_compiled": diffusers_compiled,
    }


def tell_kernels(bench: Bench) -> None:
    """Milliseconds of each attention kernel on the classes of shape that the model has."""
    dtype = next(bench.unet.parameters()).dtype
    shapes = SHAPES | {f"spatial_{tokens}": (50, heads, tokens, 64) for heads, tokens in ((10, 2304), (20, 576))}
    for kind, shape in (shapes if bench.on_gpu else {"tiny": (4, 2, 20, 16)}).items():
        seconds = kernel_seconds(bench.device, dtype, shape)
        say(part="kernels", kind=kind, shape=shape, ms={name: round(1000 * each, 3) for name, each in seconds.items()})


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
        mine.frames = made[name](given)
        if bench.on_gpu:
            mine.peak_bytes = max(mine.peak_bytes, torch.cuda.max_memory_allocated())
        say(
            part=name,
            warm_up=warm_up,
            clip_s=round(given.clip_s[-1], 3),
            step_ms=[round(1000 * each, 2) for each in given.step_s[1 - bench.step_count :]],
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
    found: dict[str, Any] = {"model_clip": list(SIZES.get("real", ())) if bench.on_gpu else None, "variants": variants}
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
