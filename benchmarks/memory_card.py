"""What the memory benchmarks of the video model share: the real model with random weights, the driver's view, results.

    python benchmarks/memory_card.py [--parts calibrate,levers,saver,prediction,trace,precision] [--tiny] --out FOLDER

runs several of them in one process, so that the model is built once. SVD-XT and a keyframe model of sd-turbo's shape
are built on the device; memory and speed do not depend on the weights' values. --tiny tries the scripts without a GPU:
its figures mean nothing.
"""

# ruff: noqa: E402 - the allocator and the hub client are told before torch and diffusers are imported

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "gpu"), str(ROOT / "benchmarks")]

import torch

from halfreel_runtime import nvml
from halfreel_runtime.device import Device, find_device
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video.quiet import quiet_libraries

quiet_libraries()

import make_svd_xt

from halfreel_video.architecture import Architecture
from halfreel_video.clip import ClipRequest
from halfreel_video.coefficients import load
from halfreel_video.estimate import Estimate, Shape
from halfreel_video.folder import KEYFRAME, SVD, ModelFolder
from halfreel_video.keyframe_defaults import KeyframeDefaults
from halfreel_video.layout import Layout
from halfreel_video.lean_unet import LeanUnet
from halfreel_video.levers import Levers
from halfreel_video.loading import weight_figures
from halfreel_video.model import ClipDefaults, VideoModel
from halfreel_video.preview import LatentColours
from halfreel_video.pulse import Pulse

GIB = 2**30
SAMPLE_S = 0.01


class Rig:
    """The model on its device, and the figures of the process that has it."""

    def __init__(self, *, tiny: bool, dtype: torch.dtype = torch.float16) -> None:
        """Builds the model where it stays."""
        torch.backends.cudnn.deterministic = True  # as the server
        if tiny:
            torch.set_num_threads(1)
        self.tiny = tiny
        self.device: Device = find_device("cpu" if tiny else "auto")
        self.memory = MemoryMonitor(self.device)
        began_at = time.monotonic()
        self.model = build(self.device, dtype, tiny=tiny)
        self.built_s = time.monotonic() - began_at

    def context_bytes(self) -> int:
        """What the driver keeps for the process beside the allocator, as the server measures it."""
        with self.memory.phase("observe"):
            pass
        return int(self.memory.report().devices[0].context_bytes)

    def used_bytes(self) -> int:
        """What the whole device has in use, less what it had before this process; 0 without a GPU."""
        used = nvml.used_bytes().get(self.device.gpu_uuid, 0)
        return max(0, used - self.device.used_at_start_bytes)

    @contextmanager
    def watched(self) -> Any:
        """Samples the device every 10 ms: yields a list whose largest element is the peak."""
        seen, ended = [self.used_bytes()], threading.Event()

        def look() -> None:
            gpu = nvml.Gpu(self.device.gpu_uuid)
            while not ended.wait(SAMPLE_S):
                if (found := gpu.memory()) is not None:
                    seen.append(found.used - self.device.used_at_start_bytes)

        thread = threading.Thread(target=look, daemon=True)
        if self.device.kind == "cuda":
            thread.start()
        try:
            yield seen
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()

    def held(self, clip: ClipRequest) -> tuple[int, int]:
        """The bytes that a job holds denoising and decoding to, by the plan; 0 where it doesn't."""
        model, levers = self.model, clip.levers
        known = load(self.device.name, model.svd_folder.model_id, model.dtype_name)
        guided, drawn = clip.guidance_scale > 1, clip.image is None
        shape = Shape(clip.width_px, clip.height_px, clip.frame_count, 1, clip.step_count, guided, drawn)
        phases = Estimate(model.architecture, known, model.dtype_name).phases(shape, levers)
        planned = {phase.name: phase.reserved_bytes for phase in phases}
        return planned["denoise"] if levers.holds_denoising else 0, planned["decode"]

    def clip(self, **changes: Any) -> ClipRequest:
        """SVD-XT's own clip: 25 frames of 1024x576 with guidance; small where it only has to run."""
        width, height = (64, 64) if self.tiny else (1024, 576)
        values: dict[str, Any] = {
            "request_id": "benchmark",
            "prompt": "a red circle over a blue sky",
            "image": None,
            "width_px": width,
            "height_px": height,
            "frame_count": 3 if self.tiny else 25,
            "step_count": 2 if self.tiny else 25,
            "fps": 7,
            "motion_bucket": 127,
            "guidance_scale": 3.0,
            "seed": 1,
            "preview": False,
            "levers": Levers(),
            "segment_frame_count": 25,
        }
        return ClipRequest(**(values | changes))


def build(device: Device, dtype: torch.dtype, *, tiny: bool) -> VideoModel:
    """The models with random weights, as the server holds them."""
    torch.manual_seed(0)
    size = make_svd_xt.TINY if tiny else make_svd_xt.REAL
    where = torch.device(device.torch_name)
    svd, keyframe = make_svd_xt.svd_xt(size, where), make_svd_xt.sd_turbo(size, where)
    for pipeline in (svd, keyframe):
        pipeline.set_progress_bar_config(disable=True)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(where, torch.float32 if tiny else dtype).eval().requires_grad_(False)
    LeanUnet(svd.unet)
    families = {"svd-xt": SVD, "sd-turbo": KEYFRAME}
    folders = [ModelFolder(ROOT, name, "", family, {}, {}) for name, family in families.items()]
    layout = Layout(svd, keyframe, where, next(svd.unet.parameters()).dtype)
    keyframe_defaults = KeyframeDefaults(128, 128, 1, 0.0) if tiny else KeyframeDefaults(512, 512, 1, 0.0)
    defaults = ClipDefaults.of(folders[0], 25)
    if tiny:
        defaults = ClipDefaults(64, 64, 4, 2, 7, 127, 3.0)
    return VideoModel(
        svd=svd,
        keyframe=keyframe,
        svd_folder=folders[0],
        keyframe_folder=folders[1],
        device=device,
        dtype=layout.dtype,
        clip_frame_count=4 if tiny else 25,
        defaults=defaults,
        keyframe_defaults=keyframe_defaults,
        colours=LatentColours(svd),
        pulse=Pulse(svd, keyframe),
        weights=weight_figures(svd, keyframe),
        layout=layout,
        architecture=Architecture.of(svd, keyframe, layout.blocks, keyframe_defaults),
    )


def result(card: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A result as the files of benchmarks/results hold it."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "card": card,
        "commit": os.environ.get("HALFREEL_COMMIT") or head.stdout.strip(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "figures": figures,
    }


def write(out: Path | None, name: str, card: str, figures: dict[str, Any]) -> str:
    """Writes a result beside those of other runs, and returns its line."""
    line = json.dumps(result(card, figures))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(line + "\n", encoding="utf-8")
    return line


def say(**values: Any) -> None:
    """One line of the raw log."""
    print(json.dumps(values), flush=True)


@contextmanager
def limited(seconds: int) -> Any:
    """Ends what takes longer."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_part(name: str, limit_s: int, part: Callable[[], Any]) -> Any:
    """Runs one part; its failure ends it alone."""
    began_at = time.monotonic()
    try:
        with limited(limit_s):
            found = part()
    except Exception as error:
        say(part=name, failed=f"{type(error).__name__}: {error}"[:400])
        traceback.print_exc()
        found = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(part=name, seconds=round(time.monotonic() - began_at, 1))
    return found


def arguments(text: str, **more: Any) -> argparse.Namespace:
    """The flags that every script has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the script")
    parser.add_argument("--out", type=Path, help="folder for the results")
    for flag, options in more.items():
        parser.add_argument(f"--{flag}", **options)
    return parser.parse_args()


def main() -> None:
    """Runs the parts that were asked for."""
    parts = "calibrate,levers,saver,prediction,trace"
    read = arguments(__doc__ or "", parts={"default": parts}, dtype={"default": "float16"})
    import memory_precision
    import memory_prediction
    import memory_saver

    rig = run_part("build", 90, lambda: Rig(tiny=read.tiny, dtype=getattr(torch, read.dtype)))
    say(card=rig.device.name, built_s=rig.built_s, weight_bytes=rig.model.weights.weight_bytes)
    wanted, found = read.parts.split(","), {}
    for name, limit_s, part in (
        ("calibrate", 170, lambda: memory_prediction.calibrated(rig, read.out)),
        ("levers", 80, lambda: memory_saver.levers(rig, read.out)),
        ("saver", 90, lambda: memory_saver.saver(rig, read.out)),
        ("precision", 40, lambda: memory_precision.one_precision(rig, read.out)),
        ("prediction", 140, lambda: memory_prediction.predict(rig, read.out)),
        ("trace", 60, lambda: memory_prediction.record(rig, read.out)),
    ):
        if name in wanted:
            found[name] = run_part(name, limit_s, part)
    print(json.dumps({name: value for name, value in found.items() if isinstance(value, dict)}), flush=True)


if __name__ == "__main__":
    main()
