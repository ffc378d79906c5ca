"""Where the time of a denoising step and of decoding goes, kernel by kernel: one JSON line each, the largest first.

It does not know how the model's layers were changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from memory_card import say
from torch.profiler import ProfilerActivity, profile
from video_bench import Bench

from halfreel_video.clip import ClipRequest
from halfreel_video.svd import Denoising, decode_chunk, encode

TOP = 25
CHUNK = 8


def tell_profile(bench: Bench, label: str, unet: Any, vae: Any) -> None:
    """Profiles one step, the third, and then one chunk of frames, the second.

    Args:
        bench: whose pipeline and clip are taken.
        label: of the lines.
        unet: a lean one.
        vae: the decoder with what is around it.
    """
    bench.pipeline.unet, bench.pipeline.vae = unet, vae
    clip = ClipRequest(**(vars(bench.clip) | {"step_count": 4}))
    generator = torch.Generator("cpu").manual_seed(clip.seed)
    conditioning = encode(bench.pipeline, bench.picture, clip, clip.frame_count, generator)
    denoising = Denoising(bench.pipeline, conditioning, clip, generator)
    denoising.ahead_count = 0
    for _ in range(2):
        denoising.step()
    _tell(bench, label, "step", denoising.step)
    latents = denoising.latents[:, :CHUNK]
    decode_chunk(bench.pipeline, latents)
    _tell(bench, label, "decode_chunk", lambda: decode_chunk(bench.pipeline, latents))


def _tell(bench: Bench, label: str, of: str, work: Callable[[], object]) -> None:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    bench.sync()
    with profile(activities=activities) as seen:
        work()
        bench.sync()
    # What runs on the device has a time of its own there; what tells it to run has none.
    rows = [(_own_us(each, bench.on_gpu), each.count, each.key) for each in seen.key_averages()]
    rows = sorted((row for row in rows if row[0] > 0), reverse=True)
    total_us, count = sum(row[0] for row in rows), sum(row[1] for row in rows)
    say(part="profile", label=label, of=of, total_ms=round(total_us / 1000, 2), kinds=len(rows), count=count)
    for microseconds, count, name in rows[:TOP]:
        say(part="profile", label=label, of=of, us=round(microseconds), count=count, kernel=name[:140])


def _own_us(event: Any, on_gpu: bool) -> float:
    if not on_gpu:
        return float(event.self_cpu_time_total)
    on_device = event.device_type != torch.autograd.DeviceType.CPU
    return float(event.self_device_time_total) if on_device else 0.0
