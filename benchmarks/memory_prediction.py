"""How near is the planner's prediction to what a clip takes? Thirty random clips, drawn from a seed of their own.

    python benchmarks/memory_prediction.py [--tiny] [--out FOLDER]

Calibrates the planner on this card first, at shapes that none of the thirty is drawn from. Each clip has a random size,
length and set of levers; two steps and two chunks of decoding, as a peak does not depend on their number. What is
compared is the allocator's peak (reserved bytes) over the whole clip, and of each phase.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from memory_card import GIB, Rig, arguments, say, write

from halfreel_video import calibration, coefficients
from halfreel_video.estimate import Estimate, Shape
from halfreel_video.levers import SDPA, SLICED, Levers
from halfreel_video.measurement import Measurement

SEED = 20_261_128
SHAPE_COUNT = 30
_AREA_PX = 1024 * 640


def calibrated(rig: Rig, out: Path | None) -> dict[str, Any]:
    """Measures this card's coefficients and keeps them as `halfreel calibrate` does, with every sample beside."""
    samples: list[dict[str, Any]] = []

    def told(sample: calibration.Sample) -> None:
        samples.append(calibration.as_json(sample))
        say(sample=samples[-1])

    shapes, ways = calibration.SHAPES, calibration.WAYS
    if rig.tiny or rig.model.dtype_name == "float32":  # FP32 takes five times as long: fewer points for its lines
        shapes, ways = shapes[:4], (ways[0], *ways[-2:])
    found = calibration.calibrate(rig.model, rig.context_bytes, told, shapes, ways)
    coefficients.save(found, "svd-xt", rig.model.dtype_name)
    figures = {"dtype": rig.model.dtype_name, "coefficients": found.to_json(), "samples": samples}
    write(out, f"memory_calibration_{rig.model.dtype_name}", rig.device.name, figures)
    return {"dtype": rig.model.dtype_name, "samples": len(samples)}


def predict(rig: Rig, out: Path | None) -> dict[str, Any]:
    """Renders the random clips, and holds each against its prediction."""
    name, draw = rig.model.dtype_name, random.Random(SEED)
    known = coefficients.load(rig.device.name, "svd-xt", name)
    estimate = Estimate(rig.model.architecture, known, name)
    rows = []
    for index in range(6 if rig.tiny else SHAPE_COUNT):
        shape, levers = _drawn(rig, draw)
        predicted = {phase.name: phase.reserved_bytes for phase in estimate.phases(shape, levers)}
        try:
            measured = _measured(rig, shape, levers, predicted)
        except torch.OutOfMemoryError as error:  # a card of less than 80 GiB may be too small for a drawn clip
            say(index=index, failed=str(error)[:200])
            rig.model.layout.release_cached()
            continue
        whole = max(measured.values()) or 1
        error_ratio = max(predicted.values()) / whole - 1
        rows.append(
            {
                "shape": asdict(shape),
                "levers": asdict(levers),
                "predicted_bytes": predicted,
                "measured_bytes": measured,
                "error_ratio": round(error_ratio, 5),
                "phase_error_ratios": {
                    each: round(predicted[each] / size - 1, 5) for each, size in measured.items() if size
                },
            }
        )
        say(index=index, error_ratio=rows[-1]["error_ratio"], peak_gib=round(whole / GIB, 3))
        # After every clip, so that a run that is cut short has what it measured.
        figures = _figures(rows, known.source)
        write(out, "memory_prediction", rig.device.name, figures)
    return {key: value for key, value in figures.items() if key != "rows"}


def _figures(rows: list[dict[str, Any]], source: str) -> dict[str, Any]:
    errors = [row["error_ratio"] for row in rows]
    return {
        "shapes": len(rows),
        "error_max_ratio": max(abs(each) for each in errors),
        "under_max_ratio": max(0.0, -min(errors)),
        "error_mean_ratio": round(sum(abs(each) for each in errors) / len(errors), 5),
        "seed": SEED,
        "coefficients": source,
        "rows": rows,
    }


def _drawn(rig: Rig, draw: random.Random) -> tuple[Shape, Levers]:
    largest = 128 if rig.tiny else 1280
    while True:
        width, height = (8 * draw.randint(8 if rig.tiny else 32, largest // 8) for _ in range(2))
        if width * height <= _AREA_PX:
            break
    frames = draw.randint(2, rig.model.clip_frame_count)
    moved = draw.choice([(False, False), (True, False), (False, True), (True, True)])
    levers = Levers(
        decode_chunk_frame_count=draw.randint(1, 12),
        attention_backend=draw.choice([SDPA, SDPA, SLICED]),
        split_guidance=draw.random() < 0.5,
        feed_forward_chunk_count=draw.choice([1, 2, 4, 8]),
        offload_idle_parts=moved[0],
        stream_weights=moved[1],
        compiled=draw.random() < 0.5,
    )
    if not levers.fuses or levers.stream_weights or not rig.model.layout.fused.ready:
        levers = replace(levers, compiled=False)
    return Shape(width, height, frames, 1, 2, draw.random() < 0.8, True), levers


def _measured(rig: Rig, shape: Shape, levers: Levers, predicted: dict[str, int]) -> dict[str, int]:
    """Renders as a job does: decoding, and denoising where it saves memory, are held to the plan."""
    measurement = Measurement(rig.model)
    clip = rig.clip(
        width_px=shape.width_px,
        height_px=shape.height_px,
        frame_count=shape.frame_count,
        step_count=shape.step_count,
        guidance_scale=3.0 if shape.guided else 1.0,
        levers=levers,
    )
    rig.model.layout.arrange(levers)
    picture, drawn = measurement.keyframe(clip)
    conditioning, looked, encoded = measurement.encode(clip, picture)
    most = predicted["denoise"] if levers.holds_denoising else 0
    latents, denoised = measurement.denoise(clip, conditioning, cap_bytes=most)
    part = latents[:, : 2 * levers.decode_chunk_frame_count]
    _, decoded = measurement.decode(part, levers, cap_bytes=predicted["decode"])
    return {
        "keyframe": drawn.reserved_bytes,
        "encode": max(looked.reserved_bytes, encoded.reserved_bytes),
        "denoise": denoised.reserved_bytes,
        "decode": decoded.reserved_bytes,
    }


def record(rig: Rig, out: Path | None) -> dict[str, Any]:
    """Records what a clip allocates, for the simulated card: as saver and as balanced, two steps each."""
    import time

    from halfreel_runtime.memory_source import Bytes
    from halfreel_runtime.testing.allocation_trace import AllocationTrace, Mark, events_of_snapshot, write_trace

    counts = {}
    for name, levers in (
        ("saver", Levers(1, SLICED, True, 8, True, True)),
        ("balanced", Levers(offload_idle_parts=True)),
    ):
        if rig.device.kind != "cuda" or out is None:
            break
        measurement, clip = Measurement(rig.model), rig.clip(levers=levers, step_count=2)
        layout, marks, peaks = rig.model.layout, [], {}
        layout.arrange(levers)
        layout.park_all()
        segments = torch.cuda.memory._snapshot()["segments"]  # what is there before the recorder begins
        torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=1_000_000)

        def begin(phase: str, marks: list[Any] = marks) -> None:
            torch.cuda.synchronize()
            now = time.time_ns() // 1000
            marks += [Mark(now, phase), Mark(now, None)]

        begin("keyframe")
        picture, peaks["keyframe"] = measurement.keyframe(clip)
        begin("embed")
        conditioning, peaks["embed"], peaks["encode"] = measurement.encode(clip, picture)
        begin("denoise")
        latents, peaks["denoise"] = measurement.denoise(clip, conditioning)
        begin("decode")
        _, peaks["decode"] = measurement.decode(latents[:, :3], levers)
        torch.cuda.synchronize()
        entries = torch.cuda.memory._snapshot()["device_traces"][rig.device.index]
        torch.cuda.memory._record_memory_history(enabled=None)
        about = {
            "what": f"SVD-XT, 25 frames of 1024x576, two steps, {name}",
            "card": rig.device.name,
            "torch": torch.__version__,
        }
        recorded = {each: Bytes(taken.allocated_bytes, taken.reserved_bytes) for each, taken in peaks.items()}
        events = list(events_of_snapshot(entries, marks, segments))
        trace = AllocationTrace(events, recorded, about=about)
        out.mkdir(parents=True, exist_ok=True)
        write_trace(trace, out / f"svd_xt_{name}.trace.gz")
        counts[name] = {"events": len(events), "entries": len(entries)}
        actions = sorted({each["action"] for each in entries})
        say(trace=name, actions=actions, **counts[name], recorded={k: v.reserved for k, v in recorded.items()})
    return counts


def main() -> None:
    """Measures, and prints one JSON line last."""
    read = arguments(__doc__ or "")
    rig = Rig(tiny=read.tiny)
    calibrated(rig, read.out)
    print(json.dumps(predict(rig, read.out)))


if __name__ == "__main__":
    main()
