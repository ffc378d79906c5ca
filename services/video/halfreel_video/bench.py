"""Every precision and lever set of the video model against FP32.

`python -m halfreel_video.bench [--frames N] [--steps N] [settings]` loads the model as it is configured once for each
precision, renders the same clip with each set of levers, and says for each: load time, peak of each phase, seconds,
likeness to FP32 (PSNR and SSIM of the frames) and how often numbers were not finite. Likeness means something for
trained models alone, such as the pocket ones. Peaks are the allocator's on a GPU; on a CPU what the process has grown
by since the precision was loaded began. One JSON line for each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from halfreel_runtime.errors import HalfreelError, InvalidArgument
from halfreel_runtime.settings import load_settings
from halfreel_video.levers import SDPA, SLICED, Levers
from halfreel_video.quiet import quiet_libraries
from halfreel_video.settings import SERVICE, VideoSettings

PROMPT = "a red circle moving over a blue sky"
SEED = 7
EXIT_USAGE = 2
PRECISIONS = ("fp32", "fp16", "bf16")
LEVERS = {
    "balanced": Levers(),
    "decode chunk 1": Levers(decode_chunk_frame_count=1),
    "split guidance": Levers(split_guidance=True),
    "feed-forward in 8": Levers(feed_forward_chunk_count=8),
    "sliced attention": Levers(attention_backend=SLICED),
    "offload": Levers(offload_idle_parts=True),
    "streamed weights": Levers(stream_weights=True),
    "saver": Levers(1, SLICED, True, 8, True, True),
}
# A CPU computes FP16 some forty times slower than FP32: there it is worth a short clip, and two sets of levers.
_CPU_FRAME_COUNT, _CPU_STEP_COUNT = 2, 2
MAX_STEP_COUNT = 100
ALONE = {"balanced": Levers(), "saver": Levers(1, SDPA, True, 8, True, True)}


def bench(settings: VideoSettings, frame_count: int | None, step_count: int | None) -> Iterator[dict[str, Any]]:
    """Measures; yields one row for each precision and lever set, FP32 first.

    Args:
        settings: of the server; its precision is not used.
        frame_count: of the clip; None takes the model's own on a GPU, 2 on a CPU.
        step_count: denoising steps; None takes the model's own on a GPU, 2 on a CPU.

    Raises:
        InvalidArgument: the model does not make so many frames at once.
        NotFound, FailedPrecondition: the model is not here, or is not one that this server can run.
    """
    import numpy as np
    import torch

    from halfreel_runtime.device import find_device
    from halfreel_runtime.memory import MemoryMonitor
    from halfreel_video.clip import ClipRequest
    from halfreel_video.likeness import psnr_db, ssim
    from halfreel_video.measurement import Measurement
    from halfreel_video.model import load_model
    from halfreel_video.svd import NanDetected

    torch.backends.cudnn.deterministic = True
    device = find_device(settings.device)
    reference = None
    for precision in PRECISIONS:
        memory = MemoryMonitor(device)
        memory.clear()  # what the precision before has left
        before_bytes, began_at = memory.live().reserved, time.monotonic()
        model = load_model(settings.model_copy(update={"precision": precision}), device)
        on_gpu, most = device.kind == "cuda", model.clip_frame_count
        frames_at_once = (most if on_gpu else min(_CPU_FRAME_COUNT, most)) if frame_count is None else frame_count
        if not 2 <= frames_at_once <= most:
            raise InvalidArgument(f"frames is {frames_at_once}; it must be between 2 and {most}, the model's own")
        load_s, defaults, measurement = time.monotonic() - began_at, model.defaults, Measurement(model)
        for name, levers in (LEVERS if on_gpu or precision == "fp32" else ALONE).items():
            clip = ClipRequest(
                request_id="bench",
                prompt=PROMPT,
                image=None,
                width_px=defaults.width_px,
                height_px=defaults.height_px,
                frame_count=frames_at_once,
                step_count=step_count or (defaults.step_count if on_gpu else _CPU_STEP_COUNT),
                fps=defaults.fps,
                motion_bucket=defaults.motion_bucket,
                guidance_scale=defaults.guidance_scale,
                seed=SEED,
                preview=False,
                levers=levers,
                segment_frame_count=model.clip_frame_count,
            )
            row: dict[str, Any] = {
                "part": "video",
                "precision": precision,
                "levers": name,
                "load_s": round(load_s, 3),
                "nan_count": 0,
                "weight_bytes": model.weights.weight_bytes,
                "frame_count": clip.frame_count,
                "step_count": clip.step_count,
                "width_px": clip.width_px,
                "height_px": clip.height_px,
                "device": device.name,
                "thread_count": torch.get_num_threads(),
            }
            model.layout.arrange(levers)
            memory.clear()
            began_at, used_s = time.monotonic(), time.process_time()
            try:
                with memory.request("bench") as usage:
                    with memory.phase("keyframe"):
                        picture, drawn = measurement.keyframe(clip)
                    with memory.phase("encode"):
                        conditioning, looked, encoded = measurement.encode(clip, picture)
                    with memory.phase("denoise"):
                        latents, denoised = measurement.denoise(clip, conditioning)
                    with memory.phase("decode"):
                        chunks, decoded = measurement.decode(latents, levers)
            except NanDetected as error:
                yield row | {"nan_count": 1, "failed": error.message}
                continue
            seconds, used_s, frames = (
                time.monotonic() - began_at,
                time.process_time() - used_s,
                np.concatenate(chunks),
            )
            # On a GPU each part's own: the allocator's peak is begun anew for each.
            phases = {"keyframe": drawn, "embed": looked, "encode": encoded, "denoise": denoised, "decode": decoded}
            peaks = {each: taken.reserved_bytes for each, taken in phases.items()}
            if not on_gpu:
                peaks = {each.phase: max(0, each.peak.reserved_bytes - before_bytes) for each in usage.phase_peaks}
            reference = frames if reference is None else reference
            likeness = psnr_db(frames, reference)
            yield row | {
                "seconds": round(seconds, 3),
                "cpu_s": round(used_s, 3),
                "phase_s": {each: round(taken.seconds, 3) for each, taken in phases.items()},
                "peak_reserved_bytes": peaks,
                "psnr_db": round(likeness, 2) if np.isfinite(likeness) else None,
                "ssim": round(ssim(frames, reference), 5),
            }
        del model, measurement
        gc.collect()
        if device.kind == "cuda":
            torch.cuda.empty_cache()


def main(argv: list[str]) -> int:
    """Prints the rows; returns the exit code."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--frames", type=int)
    flags.add_argument("--steps", type=int)
    read, rest = flags.parse_known_args(argv)
    settings = load_settings(VideoSettings, SERVICE, rest)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the server
    quiet_libraries()
    if settings.thread_count:
        import torch

        torch.set_num_threads(settings.thread_count)
    try:
        if read.steps is not None and not 1 <= read.steps <= MAX_STEP_COUNT:
            raise InvalidArgument(f"steps is {read.steps}; it must be between 1 and {MAX_STEP_COUNT}")
        for row in bench(settings, read.frames, read.steps):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    except HalfreelError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
