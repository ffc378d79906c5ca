"""Each trade of the image-to-video model: how much work it saves, and how near its clips are to the exact ones.

    python benchmarks/video_trades.py [--model pocket] [--guidance-scale 2] [--step-count 0] [--out FOLDER]

For some captions of the pocket world the exact clip and each trade's are rendered from the same keyframe and seed, and
compared frame by frame. "half_the_steps" stands beside them for scale: it is no trade of the server, since a client
can ask for fewer steps as it is. Work is counted in multiplications, not in seconds, so that a busy machine changes
nothing; guidance is on, since where it is off there is none to leave out.
"""

# ruff: noqa: E402 - the hub client is told before diffusers is imported

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from halfreel_video.quiet import quiet_libraries

quiet_libraries()

from likeness import psnr_db, ssim
from memory_card import say, write

from halfreel_video.clip import ClipRequest
from halfreel_video.folder import KEYFRAME, SVD, open_folder
from halfreel_video.keyframe import draw_keyframe
from halfreel_video.keyframe_defaults import KeyframeDefaults
from halfreel_video.levers import Levers
from halfreel_video.loading import load_keyframe, load_svd
from halfreel_video.model import ClipDefaults
from halfreel_video.svd import Denoising, decode, encode
from halfreel_video.trades import TRADES

CAPTIONS = (
    "a red circle moving over a blue sky",
    "a green square falling over a yellow field",
    "a yellow triangle rising over a green field",
    "a blue star moving left over a white sky",
)


def render(pipeline: Any, clip: ClipRequest) -> tuple[Any, int]:
    """The frames of a clip, and the floating-point operations of its denoising."""
    generator = torch.Generator("cpu").manual_seed(clip.seed)
    conditioning = encode(pipeline, clip.image, clip, clip.frame_count, generator)
    denoising = Denoising(pipeline, conditioning, clip, generator)
    with FlopCounterMode(display=False) as counted:
        while denoising.done_count < denoising.step_count:
            denoising.advance()
    return np.concatenate(list(decode(pipeline, denoising.latents, 8))), counted.get_total_flops()


def main() -> None:
    """Prints one JSON line a clip, and the result last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="pocket or a folder")
    parser.add_argument("--keyframe-model", default="pocket", help="pocket or a folder")
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--step-count", type=int, default=0, help="0 takes the model's own")
    parser.add_argument("--clips", type=int, default=len(CAPTIONS))
    parser.add_argument("--thread-count", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.thread_count:
        torch.set_num_threads(arguments.thread_count)
    cpu = torch.device("cpu")
    folder, drawer = open_folder(arguments.model, SVD), open_folder(arguments.keyframe_model, KEYFRAME)
    pipeline, keyframe = load_svd(folder, torch.float32, cpu), load_keyframe(drawer, torch.float32, cpu)
    defaults = ClipDefaults.of(folder, int(pipeline.unet.config.num_frames))
    step_count = arguments.step_count or defaults.step_count
    ways: dict[str, dict[str, Any]] = {trade: {"trades": (trade,)} for trade in TRADES}
    ways |= {"both_trades": {"trades": TRADES}, "half_the_steps": {"step_count": math.ceil(step_count / 2)}}
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for index, caption in enumerate(CAPTIONS[: arguments.clips]):
        size = defaults.width_px, defaults.height_px
        picture = draw_keyframe(keyframe, KeyframeDefaults.of(drawer, keyframe), caption, *size, index)
        clip = ClipRequest(
            request_id=caption,
            prompt=caption,
            image=picture,
            width_px=defaults.width_px,
            height_px=defaults.height_px,
            frame_count=defaults.frame_count,
            step_count=step_count,
            fps=defaults.fps,
            motion_bucket=defaults.motion_bucket,
            guidance_scale=arguments.guidance_scale,
            seed=index,
            preview=False,
            levers=Levers(),
            segment_frame_count=defaults.frame_count,
        )
        exact, work = render(pipeline, clip)
        for name, changes in ways.items():
            frames, less = render(pipeline, replace(clip, **changes))
            seen[name].append((psnr_db(frames, exact), ssim(frames, exact), less / work))
            say(caption=caption, way=name, psnr_db=seen[name][-1][0], ssim=seen[name][-1][1], work=seen[name][-1][2])
    figures: dict[str, Any] = {
        "clips": len(seen["both_trades"]),
        "step_count": step_count,
        "guidance_scale": arguments.guidance_scale,
        "ways": {
            name: {
                "psnr_to_exact_db": round(statistics.mean(each[0] for each in found), 2),
                "psnr_least_db": round(min(each[0] for each in found), 2),
                "ssim_to_exact": round(statistics.mean(each[1] for each in found), 4),
                "work_ratio": round(statistics.mean(each[2] for each in found), 3),
            }
            for name, found in seen.items()
        },
    }
    print(write(arguments.out, "video_trades-cpu", "cpu", figures))


if __name__ == "__main__":
    main()
