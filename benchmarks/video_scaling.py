"""One clip on several GPUs against one, and clips in parallel, one to a GPU, against each alone.

    python benchmarks/video_scaling.py [--parts pair,parallel] [--tiny] [--out FOLDER]

SVD-XT with random weights, 25 frames of 1024x576 with guidance from a given picture, FP16, fused blocks, by the
server's own jobs: a clip's seconds are those from the picture to the MP4. "pair" renders it on one GPU and on all of
them in one process: a half of guidance on each of two, chunks of frames on all. "parallel" has a process for each GPU
render clips of fewer steps, first one process after the other and then all at once; the linear ratio is the clips a
second of all at once over the sum of those of each alone. --tiny tries
the script on a CPU: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from likeness import psnr_db
from memory_card import GIB, Rig, run_part, say, write
from PIL import Image

from halfreel_runtime.cancel import CancelToken
from halfreel_video import job
from halfreel_video.events import ClipDone, StepDone
from halfreel_video.frame_writer import FrameWriter
from halfreel_video.levers import Levers
from halfreel_video.replica import Replica

SCRIPT = Path(__file__).resolve()
LOOK_S = 0.002  # between two looks at a file that another process makes
CHILD_S = 100.0  # from a process's start to its readiness
CLIP_S = 40.0  # of one clip, at most


class Recorder(FrameWriter):
    """Keeps the frames that are written."""

    frames: list[Any]

    def add(self, frame: Any) -> None:
        """As the writer's."""
        type(self).frames.append(np.array(frame))
        super().add(frame)


def render(rig: Rig, step_count: int, *, guided: bool = True, **levers: Any) -> dict[str, Any]:
    """One clip by the server's own job: what it took, its frames and its checksum."""
    clip = rig.clip(
        step_count=step_count,
        guidance_scale=3.0 if guided else 1.0,
        image=picture(rig),
        levers=Levers(compiled=rig.model.layout.fused.ready, **levers),
    )
    Recorder.frames = []
    began_s, cpu_s = time.monotonic(), time.process_time()
    events = list(job.ClipJob(rig.model, clip, rig.memory).steps(CancelToken()))
    done = events[-1]
    assert isinstance(done, ClipDone)
    step_s = [event.duration_s for event in events if isinstance(event, StepDone)]
    # On a GPU the next step has begun when one is told to be over: the last one seems shorter than it is.
    steady = step_s[1:-1] or step_s
    return {
        "clip_s": round(time.monotonic() - began_s, 4),
        "step_ms": round(1000 * sum(steady) / len(steady), 2),
        "stage_s": {stage.value: round(seconds, 4) for stage, seconds in done.stage_s.items()},
        "cpu_s": round(time.process_time() - cpu_s, 3),
        "step_count": step_count,
        "levers": {name: value for name, value in vars(done.levers).items() if value},
        "rungs": done.rungs,
        "sha256": done.sha256,
        "frames": np.stack(Recorder.frames),
    }


def picture(rig: Rig) -> Image.Image:
    """A first picture: smooth colours."""
    clip = rig.clip()
    noise = np.random.default_rng(1).integers(0, 255, (9, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((clip.width_px, clip.height_px), Image.Resampling.BICUBIC)


def told(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Says what a clip took, without its frames."""
    shown = {key: value for key, value in found.items() if key != "frames"}
    say(part=name, **shown)
    return shown


def fused(rig: Rig) -> None:
    """Tries the fused blocks, as the server does in its spare moments."""
    began_s, layout = time.monotonic(), rig.model.layout
    layout.arrange(Levers())
    while layout.check_next():
        pass
    say(
        part="fused",
        ready=layout.fused.ready,
        problem=layout.fused.problem,
        seconds=round(time.monotonic() - began_s, 1),
    )


def pair(rig: Rig, figures: dict[str, Any], deadline_s: float) -> None:
    """One clip on all GPUs and on one; what is known is in `figures`, also where time runs out."""
    layout, steps = rig.model.layout, 3 if rig.tiny else 25
    others = [torch.device("cuda", number) for number in range(1, torch.cuda.device_count())]
    if rig.tiny:
        others = [torch.device("cpu")]
    figures["device_count"] = 1 + len(others)
    fused(rig)
    found: list[dict[str, Any]] = []
    short = None
    if others:
        add_replicas(rig, others)
        told("all, warm-up", render(rig, 2))
        short = render(rig, 2)
        told("all, 2 steps", short)
        found.append(render(rig, steps))
        figures["all"] = told("all", found[0])
        figures["clip_two_gpus_s"] = found[0]["clip_s"] if len(others) == 1 and not found[0]["rungs"] else None
        if not rig.tiny:
            devices = range(1 + len(others))
            figures["peak_gib"] = [round(torch.cuda.max_memory_reserved(each) / GIB, 3) for each in devices]
    replicas, layout.replicas = layout.replicas, []
    told("one, warm-up", render(rig, 2))
    one = render(rig, steps)
    figures["one"] = told("one", one)
    if short is not None:
        best = found[0]
        difference = np.abs(best["frames"].astype(int) - one["frames"])
        likeness = psnr_db(best["frames"], one["frames"])
        figures["max_difference"] = int(difference.max())
        figures["psnr_to_one_db"] = round(likeness, 2) if np.isfinite(likeness) else None
        split = render(rig, 2, split_guidance=True)
        told("one, split, 2 steps", split)
        figures["equals_split"] = bool(np.array_equal(short["frames"], split["frames"]))
    # What a device has to do of a guided step where it has half of it.
    half = [render(rig, 4, guided=False) for _ in range(2)][-1]
    figures["half_step_ms"] = told("one, without guidance", half)["step_ms"]
    layout.replicas = replicas
    while found and len(found) < 3 and time.monotonic() + 2 * found[-1]["clip_s"] < deadline_s:
        found.append(render(rig, steps))
        told("all", found[-1])
    if found:
        best = min(found, key=lambda each: each["clip_s"])
        figures["all"] = {key: value for key, value in best.items() if key != "frames"}
        figures["all_clip_s"] = [each["clip_s"] for each in found]
        figures["speed_up"] = round(one["clip_s"] / best["clip_s"], 3)
        figures["clip_two_gpus_s"] = best["clip_s"] if len(others) == 1 and not best["rungs"] else None
    say(part="pair", **figures)


def add_replicas(rig: Rig, devices: list[torch.device]) -> None:
    """Has clips rendered on further devices too, and tries their fused blocks, as the server does."""
    began_s, layout = time.monotonic(), rig.model.layout
    layout.replicas = [Replica(rig.model.svd, each, layout.attention.kernels) for each in devices]
    layout.arrange(Levers())
    for replica in layout.replicas:
        while replica.check_next():
            pass
        say(
            part="replica",
            device=str(replica.device),
            peer_access=replica.device.type == "cuda" and torch.cuda.can_device_access_peer(0, replica.device.index),
            usable=replica.usable,
            problem=replica.problem,
            fused=replica.fused.ready,
            fused_problem=replica.fused.problem,
            gib=round(replica.size_bytes / GIB, 3),
            seconds=round(time.monotonic() - began_s, 1),
        )


def work(folder: Path, name: str, *, tiny: bool, steps: int) -> None:
    """A process that has one GPU: renders a clip whenever it is told to, until it is told to end."""
    rig = Rig(tiny=tiny)
    fused(rig)
    render(rig, 2)
    (folder / f"ready-{name}").touch()
    for turn in ("alone", "together"):
        # The turn of the last process comes after those of all others.
        waited(lambda turn=turn: (folder / f"{turn}-{name}").exists(), 2 * CHILD_S + 8 * CLIP_S)
        began_s = time.monotonic()
        found = told(f"{turn}, {name}", render(rig, steps))
        found |= {"began_s": began_s, "ended_s": time.monotonic()}
        partial = folder / f"partial-{turn}-{name}"
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.rename(folder / f"done-{turn}-{name}")


def waited(ready: Callable[[], bool], within_s: float) -> None:
    """Returns once something is so.

    Raises:
        TimeoutError: it was not within its time.
    """
    deadline_s = time.monotonic() + within_s
    while not ready():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {within_s} s in vain")
        time.sleep(LOOK_S)


def parallel(read: argparse.Namespace, device_count: int) -> dict[str, Any]:
    """A process for each GPU: clips one after the other, and all at once."""
    names = [str(number) for number in range(device_count)]
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each] or names
    children: list[subprocess.Popen[bytes]] = []

    def done(folder: Path, *files: str) -> Callable[[], bool]:
        def look() -> bool:
            for child in children:
                if child.poll() not in (None, 0):
                    raise RuntimeError(f"a process ended with {child.returncode}; its words are above")
            return all((folder / file).exists() for file in files)

        return look

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            for name in names:
                command = [sys.executable, str(SCRIPT), "--worker", name, "--folder", scratch]
                command += ["--parallel-step-count", str(read.parallel_step_count), *(["--tiny"] if read.tiny else [])]
                environment = os.environ | ({} if read.tiny else {"CUDA_VISIBLE_DEVICES": visible[int(name)]})
                children.append(subprocess.Popen(command, env=environment))
            waited(done(folder, *(f"ready-{name}" for name in names)), CHILD_S)
            for name in names:
                (folder / f"alone-{name}").touch()
                waited(done(folder, f"done-alone-{name}"), CLIP_S)
            for name in names:
                (folder / f"together-{name}").touch()
            waited(done(folder, *(f"done-together-{name}" for name in names)), CLIP_S)
            taken = {
                turn: [json.loads((folder / f"done-{turn}-{name}").read_text()) for name in names]
                for turn in ("alone", "together")
            }
        finally:
            for child in children:
                child.terminate()
            for child in children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(10)
                if child.poll() is None:
                    child.kill()
                    child.wait(10)
    alone, together = taken["alone"], taken["together"]
    wall_s = max(each["ended_s"] for each in together) - min(each["began_s"] for each in together)
    alone_rate = sum(1 / (each["ended_s"] - each["began_s"]) for each in alone)
    figures = {
        "process_count": len(names),
        "alone_clip_s": [each["clip_s"] for each in alone],
        "together_clip_s": [each["clip_s"] for each in together],
        "together_wall_s": round(wall_s, 4),
        "step_count": read.parallel_step_count,
        "linear_ratio": round(len(names) / wall_s / alone_rate, 4),
    }
    say(part="parallel", **figures)
    return figures


def main() -> None:
    """Prints one JSON line a part, and the result last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the script")
    parser.add_argument("--parts", default="pair,parallel")
    parser.add_argument("--parallel-step-count", type=int, default=10)
    parser.add_argument("--budget-s", type=int, default=150, help="of all parts")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    read = parser.parse_args()
    job.FrameWriter = Recorder  # type: ignore[misc]
    if read.worker is not None:
        work(read.folder, read.worker, tiny=read.tiny, steps=read.parallel_step_count)
        return
    ends_s, parts = time.monotonic() + read.budget_s, read.parts.split(",")
    device_count = 2 if read.tiny else torch.cuda.device_count()
    figures: dict[str, Any] = {"clip_two_gpus_s": None, "linear_ratio": None}
    card = "cpu"
    # What clips in parallel need: starts, and a clip for each process alone and one for all.
    reserve_s = 35 + 8 * device_count if "parallel" in parts else 0
    if "pair" in parts:
        rig = run_part("build", 60, lambda: Rig(tiny=read.tiny))
        if rig is not None:
            say(part="built", card=rig.device.name, devices=device_count, seconds=round(rig.built_s, 1))
            left_s = max(30, int(ends_s - time.monotonic() - reserve_s))
            deadline_s = time.monotonic() + left_s
            run_part("pair", left_s, lambda: pair(rig, figures, deadline_s))
        del rig
    if "parallel" in parts and device_count > 1:
        left_s = max(30, int(ends_s - time.monotonic()))
        figures |= {"parallel": run_part("parallel", left_s, lambda: parallel(read, device_count))}
        figures["linear_ratio"] = (figures["parallel"] or {}).get("linear_ratio")
    if not read.tiny:
        name = torch.cuda.get_device_name(0).removeprefix("NVIDIA ").split()[0].lower()
        card = f"{name}x{device_count}" if device_count > 1 else name
    print(json.dumps(json.loads(write(read.out, f"video_scaling-{card}", card, figures))), flush=True)


if __name__ == "__main__":
    main()
