"""Do the pocket models show what was asked? Ideas held out from training, through all three, held against the truth.

    python benchmarks/pocket_quality.py [--ideas 40] [--half 40] [--shuffled] [--write]

The way of the product without its servers: each idea becomes a script under the gateway's schema, each scene a keyframe
and a clip. A detector without learnt parts looks for what was asked. FP16 is held against FP32 with the same seeds.
`drift_max` is how far the background of a clip gets from that of its first frame, in [-1, 1], `flicker_max` how much it
changes from frame to frame, `jump_px_median` how far a shape leaves its steady way at its worst. --shuffled mixes the
values of every weight first: what is left then is chance, not the models' doing. It ends with 1 where a bound is
missed.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from torch.nn import functional as F
from transformers import GlmForCausalLM

import halfreel_pocket
from halfreel_gateway import script
from halfreel_llm.chatglm3_tokenizer import ChatGLM3Tokenizer
from halfreel_llm.messages import Message
from halfreel_pocket import detector, scripts, steadiness, world
from halfreel_pocket.words import COLOURS, MOTIONS, SHAPES

LEAST = {
    "object_rate": 0.90,
    "motion_rate": 0.80,
    "script_valid_rate": 1.0,
    "script_order_rate": 0.95,
    "ssim_fp16": 0.98,
    "token_agreement_fp16": 0.98,
}
MOST = {"drift_max": 0.06, "flicker_max": 0.04, "jump_px_median": 1.0}
MOST_SHUFFLED = {"object_rate": 0.3, "script_order_rate": 0.2}
LONGEST_SCRIPT = 1500
SCENES_EACH = 2  # of an idea that are filmed
NOISE_STRENGTH = 0.02


@dataclass(frozen=True)
class Models:
    """The three models in one precision on one device."""

    glm: Any
    keyframe: Any
    svd: Any
    dtype: torch.dtype
    device: torch.device
    keyframe_defaults: dict[str, Any]
    svd_defaults: dict[str, Any]

    @classmethod
    def load(cls, dtype: torch.dtype, device: torch.device, *, shuffled: bool) -> "Models":
        """The models, every weight's values mixed if `shuffled`."""
        paths = {name: halfreel_pocket.folder(name) for name in halfreel_pocket.NAMES}
        glm = GlmForCausalLM.from_pretrained(paths["glm"], dtype=torch.float32)
        keyframe = StableDiffusionPipeline.from_pretrained(paths["keyframe"], dtype=torch.float32, safety_checker=None)
        svd = StableVideoDiffusionPipeline.from_pretrained(paths["svd"], dtype=torch.float32)
        parts = [glm, keyframe.unet, keyframe.vae, keyframe.text_encoder, svd.unet, svd.vae, svd.image_encoder]
        for part in parts:
            if shuffled:
                shuffle(part)
            torch.nn.Module.to(part, device=device, dtype=dtype).eval()
        for pipeline in (keyframe, svd):
            pipeline.set_progress_bar_config(disable=True)
        defaults = [json.loads((paths[name] / "halfreel.json").read_text()) for name in ("keyframe", "svd")]
        return cls(glm, keyframe, svd, dtype, device, *defaults)


def shuffle(module: torch.nn.Module) -> None:
    """Mix the values of every weight of `module` among themselves."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            flat = weight.flatten()
            weight.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(weight))


@torch.inference_mode()
def write(models: Models, tokenizer: ChatGLM3Tokenizer, idea: str) -> list[int]:
    """The tokens of the script for `idea`, always the likeliest that the gateway's schema allows."""
    vocabulary = models.glm.config.vocab_size
    schema = script.ScriptLimits(None, 1, 8).schema()
    body = json.dumps({**json.loads(schema), "x-guidance": {"whitespace_flexible": False}})
    grammar = LLMatcher.grammar_from_lark(f"start: body\nbody: %json {body}")
    matcher = LLMatcher(tokenizer.grammar_tokenizer(vocabulary), grammar)
    mask = allocate_token_bitmask(1, vocabulary)
    asked = tokenizer.encode_chat([Message("system", script.INSTRUCTION), Message("user", script.question(idea, None))])
    ids, cache, written = torch.tensor([asked], device=models.device), None, []
    while len(written) < LONGEST_SCRIPT:
        answer = models.glm(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        fill_next_token_bitmask(matcher, mask)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocabulary].astype(bool)
        logits = answer.logits[0, -1].float().cpu().masked_fill(~torch.from_numpy(allowed), -torch.inf)
        token = int(logits.argmax())
        if token in tokenizer.stop_ids:
            break
        matcher.consume_token(token)
        written.append(token)
        if matcher.is_stopped():
            break
        ids = torch.tensor([[token]], device=models.device)
    return written


@torch.inference_mode()
def show(models: Models, picture: str, motion: str, seed: int) -> torch.Tensor:
    """The clip of a scene, (F, 3, H, W) in [-1, 1]; its noise is drawn in FP32, whatever the models' precision."""
    size, steps = (world.HEIGHT_PX // 8, world.WIDTH_PX // 8), models.svd_defaults
    generator = torch.Generator().manual_seed(seed)
    image = models.keyframe(
        picture,
        height=world.HEIGHT_PX,
        width=world.WIDTH_PX,
        num_inference_steps=int(models.keyframe_defaults["step_count"]),
        guidance_scale=float(models.keyframe_defaults["guidance_scale"]),
        latents=torch.randn((1, 4, *size), generator=generator).to(models.device, models.dtype),
    ).images[0]
    frames = models.svd(
        image,
        height=world.HEIGHT_PX,
        width=world.WIDTH_PX,
        num_frames=int(steps["frame_count"]),
        num_inference_steps=int(steps["step_count"]),
        min_guidance_scale=1.0,
        max_guidance_scale=float(steps["guidance_scale"]),
        motion_bucket_id=20 if motion == "still" else int(steps["motion_bucket"]),
        fps=int(steps["fps"]),
        noise_aug_strength=NOISE_STRENGTH,
        latents=torch.randn((1, int(steps["frame_count"]), 4, *size), generator=generator).to(
            models.device, models.dtype
        ),
        generator=generator,
        output_type="pt",
    ).frames[0]
    return frames.float().cpu() * 2 - 1


def similarity(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean SSIM (Wang et al. 2004; Gaussian window of 11 px, sigma 1.5) of two clips in [-1, 1]."""
    line = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line[None]) / line.sum() ** 2

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, window.expand(3, 1, 11, 11), groups=3)

    one, two = (first + 1) / 2, (second + 1) / 2
    mean_one, mean_two = mean(one), mean(two)
    variance_one, variance_two = mean(one * one) - mean_one**2, mean(two * two) - mean_two**2
    shared = mean(one * two) - mean_one * mean_two
    ratio = (2 * mean_one * mean_two + 0.01**2) * (2 * shared + 0.03**2)
    return float((ratio / ((mean_one**2 + mean_two**2 + 0.01**2) * (variance_one + variance_two + 0.03**2))).mean())


def scenes_of(text: str) -> list[script.ScriptScene]:
    """The scenes that the gateway would take from an answer; none if it is no script."""
    try:
        return script.parse(text, script.ScriptLimits(None, 1, 8)).scenes
    except script.NoScriptError:
        return []


def named(words: str, names: Iterable[str]) -> int:
    """Number of the first of `names` that `words` hold, -2 where they hold none."""
    return next((number for number, name in enumerate(names) if name in words.split()), -2)


def in_order(request: scripts.Request, written: list[script.ScriptScene]) -> bool:
    """Whether the things of the request stand in the script's pictures in their order."""
    things = [f"{scene.colour} {scene.shape}" for scene in request.scenes]
    pictures = iter(scene.picture for scene in written)
    return all(any(thing in picture for picture in pictures) for thing in things)


def agreement(one: list[int], two: list[int]) -> float:
    """Share of places at which two token sequences are the same."""
    return sum(a == b for a, b in zip(one, two, strict=False)) / max(len(one), len(two), 1)


def measure(models: Models, half: Models, ideas: int, half_ideas: int) -> dict[str, float | None]:
    """All figures, of `ideas` held-out ideas; the first `half_ideas` of them in half precision too."""
    tokenizer = ChatGLM3Tokenizer(halfreel_pocket.folder("glm") / "tokenizer.model")
    rng = random.Random(2024)
    requests = [scripts.random_request(rng, held_out=True) for _ in range(ideas)]
    valid = ordered = films = objects = last_objects = moved = 0
    agreements, likenesses, jumps, drifts, flickers, scene_seconds = [], [], [], [], [], []
    for number, request in enumerate(requests):
        tokens = write(models, tokenizer, request.idea)
        if number < half_ideas:
            agreements.append(agreement(tokens, write(half, tokenizer, request.idea)))
        stream = tokenizer.stream()
        text = "".join(stream.push(token) for token in tokens)
        written = scenes_of(text)
        valid += bool(written)
        ordered += in_order(request, written)
        told = []
        for index, scene in enumerate(written[:SCENES_EACH]):
            seed = number * SCENES_EACH + index
            began = time.perf_counter()
            clip = show(models, scene.picture, scene.motion, seed)
            scene_seconds.append(time.perf_counter() - began)
            found = detector.find(clip)
            right = (found.colour == named(scene.picture, COLOURS)) & (found.shape == named(scene.picture, SHAPES))
            moves = list(MOTIONS)[int(detector.motion_of(found, len(clip))[0])] == scene.motion
            films += 1
            objects += float(right.float().mean()) >= 0.8
            last_objects += bool(right[-1])
            moved += moves
            jumps.append(steadiness.jump_px(found))
            drifts.append(steadiness.drift(clip))
            flickers.append(steadiness.flicker(clip))
            if number < half_ideas and index == 0:
                likenesses.append(similarity(clip, show(half, scene.picture, scene.motion, seed)))
            told.append(f"{scene.picture} [{float(right.float().mean()):.2f}{'' if moves else ', moves otherwise'}]")
        print(f"{number + 1}/{ideas} {request.idea!r}: {'; '.join(told) or text[:200]}", flush=True)
    return {
        "object_rate": objects / max(films, 1),
        "object_last_frame_rate": last_objects / max(films, 1),
        "motion_rate": moved / max(films, 1),
        "script_valid_rate": valid / ideas,
        "script_order_rate": ordered / ideas,
        "ssim_fp16": min(likenesses, default=None),
        "token_agreement_fp16": sum(agreements) / len(agreements) if agreements else None,
        "jump_px_median": float(np.median(jumps or [0.0])),
        "drift_max": max(drifts, default=0.0),
        "flicker_max": max(flickers, default=0.0),
        "scene_s_median": float(np.median(scene_seconds or [0.0])),
        "films": films,
        "ideas": ideas,
        "half_ideas": half_ideas,
    }


def main() -> None:
    """Measure, print one JSON line last, and write it beside the other results if asked."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ideas", type=int, default=40)
    arguments.add_argument(
        "--half",
        type=int,
        default=40,
        help="ideas also tried in FP16, in which many CPUs take minutes a scene",
    )
    arguments.add_argument("--shuffled", action="store_true")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    torch.set_num_threads(read.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    models = Models.load(torch.float32, device, shuffled=read.shuffled)
    load_s = time.perf_counter() - began
    half = Models.load(torch.float16, device, shuffled=read.shuffled)
    figures = {**measure(models, half, read.ideas, read.half), "load_s": load_s}
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    card = "cpu" if device.type == "cpu" else torch.cuda.get_device_name().split()[-1].lower()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "card": card,
        "commit": head.stdout.strip(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "diffusers")},
        },
        "figures": {name: value if value is None else round(value, 4) for name, value in figures.items()},
    }
    line = json.dumps(result)
    if read.write:
        name = "pocket_quality_shuffled" if read.shuffled else "pocket_quality"
        path = Path(__file__).parent / "results" / f"{name}-{card}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(line + "\n", encoding="utf-8")
    print(line)
    least, most = ({}, MOST_SHUFFLED) if read.shuffled else (LEAST, MOST)
    missed = [
        f"{name} is {figures[name]}, at least {bound} is wanted"
        for name, bound in least.items()
        if under(figures[name], bound)
    ]
    missed += [
        f"{name} is {figures[name]}, at most {bound} is wanted"
        for name, bound in most.items()
        if under(bound, figures[name])
    ]
    for each in missed:
        print(each, file=sys.stderr)
    sys.exit(bool(missed))


def under(figure: float | None, bound: float | None) -> bool:
    """Whether a figure that was measured lies under a bound."""
    return figure is not None and bound is not None and figure < bound


if __name__ == "__main__":
    main()
