"""Every precision and lever set of the video model against FP32: `python -m halfreel_video.bench [settings]`.

Loads the model as it is configured once for each precision, renders the same clip with each set of levers, and says for
each: load time, peak of each phase, seconds, likeness to FP32 (PSNR and SSIM of the frames) and how often numbers were
not finite. Likeness means something for trained models alone, such as the pocket ones. One JSON line for each.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from halfreel_runtime.settings import load_settings
from halfreel_video.levers import SDPA, SLICED, Levers
from halfreel_video.quiet import quiet_libraries
from halfreel_video.settings import SERVICE, VideoSettings

PROMPT = "a red circle moving over a blue sky"
SEED = 7
EXIT_USAGE = 2
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
# On a CPU half precision is slow and only its likeness is of interest.
_CPU_FRAME_COUNT, _CPU_STEP_COUNT = 2, 2
ALONE = {"balanced": Levers(), "saver": Levers(1, SDPA, True, 8, True, True)}


def bench(settings: VideoSettings) -> Iterator[dict[str, Any]]:
    """Measures; yields one row for each precision and lever set, FP32 first."""
    import numpy as np
    import torch

    from halfreel_runtime.device import find_device
    from halfreel_video.clip import ClipRequest
    from halfreel_video.likeness import psnr_db, ssim
    from halfreel_video.measurement import Measurement
    from halfreel_video.model import load_model
    from halfreel_video.svd import NanDetected

    torch.backends.cudnn.deterministic = True
    device = find_device(settings.device)
    reference = None
    for precision in ("fp32", "fp16", "bf16"):
        began_at = time.monotonic()
        model = load_model(settings.model_copy(update={"precision": precision}), device)
        frame_count = model.clip_frame_count if device.kind == "cuda" else min(_CPU_FRAME_COUNT, model.clip_frame_count)
        step_count = model.defaults.step_count if device.kind == "cuda" else _CPU_STEP_COUNT
        load_s, defaults, measurement = time.monotonic() - began_at, model.defaults, Measurement(model)
        for name, levers in (LEVERS if device.kind == "cuda" or precision == "fp32" else ALONE).items():
            clip = ClipRequest(
                request_id="bench",
                prompt=PROMPT,
                image=None,
                width_px=defaults.width_px,
                height_px=defaults.height_px,
                frame_count=frame_count,
                step_count=step_count,
                fps=defaults.fps,
                motion_bucket=defaults.motion_bucket,
                guidance_scale=defaults.guidance_scale,
                seed=SEED,
                preview=False,
                levers=levers,
                segment_frame_count=model.clip_frame_count,
            )
            row: dict[str, Any] = {"precision": precision, "levers": name, "load_s": round(load_s, 3), "nan_count": 0}
            model.layout.arrange(levers)
            began_at = time.monotonic()
            try:
                picture, drawn = measurement.keyframe(clip)
                conditioning, looked, encoded = measurement.encode(clip, picture)
                latents, denoised = measurement.denoise(clip, conditioning)
                chunks, decoded = measurement.decode(latents, levers)
            except NanDetected as error:
                yield row | {"nan_count": 1, "failed": error.message}
                continue
            phases = {"keyframe": drawn, "embed": looked, "encode": encoded, "denoise": denoised, "decode": decoded}
            frames = np.concatenate(chunks)
            reference = frames if reference is None else reference
            likeness = psnr_db(frames, reference)
            yield row | {
                "seconds": round(time.monotonic() - began_at, 3),
                "peak_reserved_bytes": {each: taken.reserved_bytes for each, taken in phases.items()},
                "weight_bytes": model.weights.weight_bytes,
                "psnr_db": round(likeness, 2) if np.isfinite(likeness) else None,
                "ssim": round(ssim(frames, reference), 5),
                "device": device.name,
            }
        del model, measurement
        gc.collect()
        if device.kind == "cuda":
            torch.cuda.empty_cache()


def main(argv: list[str]) -> int:
    """Prints the rows; returns the exit code."""
    settings = load_settings(VideoSettings, SERVICE, argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    quiet_libraries()
    from halfreel_runtime.errors import HalfreelError

    try:
        for row in bench(settings):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    except HalfreelError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
