"""How little of a card does a clip of SVD-XT take, and what does that cost? Each lever alone and all together.

    python benchmarks/memory_saver.py [--tiny] [--out FOLDER]

25 frames of 1024x576 with guidance, FP16. `levers` runs a few steps and one decode with each lever; `saver` renders
the whole clip (25 steps) as `balanced` and as `saver` in the same process. The device's peak is the driver's (NVML),
sampled every 10 ms, less what the card had in use before the process.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memory_card import GIB, Rig, arguments, run_part, say, write

from halfreel_runtime.plan import Profile, Room
from halfreel_video.coefficients import load
from halfreel_video.estimate import Estimate
from halfreel_video.levers import SLICED, Levers
from halfreel_video.measurement import Measurement
from halfreel_video.planner import Planner, Wish

BALANCED = Levers()
ALONE = {
    "balanced": BALANCED,
    "decode_chunk 1": Levers(decode_chunk_frame_count=1),
    "split_guidance": Levers(split_guidance=True),
    "feed_forward_chunks 8": Levers(feed_forward_chunk_count=8),
    "sliced": Levers(attention_backend=SLICED),
    "offload_idle_parts": Levers(offload_idle_parts=True),
    "stream_weights": Levers(stream_weights=True),
    "split + chunks 8": Levers(split_guidance=True, feed_forward_chunk_count=8),
    "split + chunks 8 + sliced": Levers(split_guidance=True, feed_forward_chunk_count=8, attention_backend=SLICED),
    "offload + stream": Levers(offload_idle_parts=True, stream_weights=True),
    "all, chunk 2, sliced": Levers(2, SLICED, True, 8, True, True),
}


def levers(rig: Rig, out: Path | None) -> dict[str, Any]:
    """Two steps and two chunks of decoding with each set of levers."""
    rows: dict[str, Any] = {}
    for name, chosen in ALONE.items():
        rows[name] = run_part(name, 30, lambda chosen=chosen: _few_steps(rig, chosen))
        say(way=name, **(rows[name] or {}))
    figures = {"step_count": 2, "rows": rows}
    write(out, "memory_levers", rig.device.name, figures)
    return figures


def _few_steps(rig: Rig, chosen: Levers) -> dict[str, Any]:
    model, measurement = rig.model, Measurement(rig.model)
    clip = rig.clip(levers=chosen, step_count=2)
    got = model.layout.arrange(chosen)
    model.layout.clear_for()
    with rig.watched() as seen:
        conditioning = measurement.conditioning(clip)
        denoise_bytes, decode_bytes = rig.held(clip)
        latents, denoised = measurement.denoise(clip, conditioning, timed=True, cap_bytes=denoise_bytes)
        part = latents[:, : 2 * chosen.decode_chunk_frame_count]
        _, decoded = measurement.decode(part, chosen, cap_bytes=decode_bytes)
    return {
        "levers": asdict(got),
        "denoise_reserved_gib": _gib(denoised.reserved_bytes),
        "denoise_allocated_gib": _gib(denoised.allocated_bytes),
        "decode_reserved_gib": _gib(decoded.reserved_bytes),
        "decode_allocated_gib": _gib(decoded.allocated_bytes),
        "device_peak_gib": _gib(max(seen)),
        "step_s": round(statistics.median(denoised.piece_s[1:]), 4),
        "decode_frame_s": round(decoded.piece_s[-1] / chosen.decode_chunk_frame_count, 4),
    }


def saver(rig: Rig, out: Path | None) -> dict[str, Any]:
    """The whole clip both ways, after each has run once for few steps."""
    name = rig.model.dtype_name
    planner = Planner(Estimate(rig.model.architecture, load(rig.device.name, "svd-xt", name), name))
    clip = rig.clip()
    wish = Wish(
        clip.width_px, clip.height_px, clip.frame_count, clip.step_count, True, True, None, None, Profile.SAVER, 25
    )
    least, _ = planner.choose(wish, Room(80 * GIB), 0)
    found = {}
    for profile, chosen in (("saver", least.levers), ("balanced", BALANCED)):
        _whole(rig, chosen, 2)
        found[profile] = _whole(rig, chosen, clip.step_count)
        say(profile=profile, **found[profile])
    figures = {
        "device_peak_gib": found["saver"]["device_peak_gib"],
        "time_ratio_to_balanced": round(found["saver"]["seconds"] / found["balanced"]["seconds"], 4),
        "predicted_saver_reserved_gib": _gib(least.plan.reserved_bytes),
        **found,
    }
    write(out, "memory_saver", rig.device.name, figures)
    return figures


def _whole(rig: Rig, chosen: Levers, step_count: int) -> dict[str, Any]:
    model, measurement = rig.model, Measurement(rig.model)
    clip = rig.clip(levers=chosen, step_count=step_count)
    got = model.layout.arrange(chosen)
    model.layout.clear_for()
    with rig.watched() as seen:
        picture, drawn = measurement.keyframe(clip)
        conditioning, looked, encoded = measurement.encode(clip, picture)
        denoise_bytes, decode_bytes = rig.held(clip)
        latents, denoised = measurement.denoise(clip, conditioning, cap_bytes=denoise_bytes)
        _, decoded = measurement.decode(latents, chosen, cap_bytes=decode_bytes)
    phases = {"keyframe": drawn, "embed": looked, "encode": encoded, "denoise": denoised, "decode": decoded}
    return {
        "levers": asdict(got),
        "seconds": round(sum(each.seconds for each in phases.values()), 3),
        "device_peak_gib": _gib(max(seen)),
        "context_gib": _gib(rig.context_bytes()),
        "reserved_gib": _gib(max(each.reserved_bytes for each in phases.values())),
        "allocated_gib": _gib(max(each.allocated_bytes for each in phases.values())),
        "step_s": round(statistics.median(denoised.piece_s), 4),
        "phases": {
            name: {
                "reserved_gib": _gib(each.reserved_bytes),
                "allocated_gib": _gib(each.allocated_bytes),
                "seconds": round(each.seconds, 3),
            }
            for name, each in phases.items()
        },
    }


def _gib(size: int) -> float:
    return round(size / GIB, 4)


def main() -> None:
    """Measures, and prints one JSON line last."""
    read = arguments(__doc__ or "")
    rig = Rig(tiny=read.tiny)
    levers(rig, read.out)
    print(json.dumps(saver(rig, read.out)))


if __name__ == "__main__":
    main()
