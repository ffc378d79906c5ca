"""Measures what a card takes for a model's phases and fits the planner's lines to it: `halfreel calibrate`.

Knows the shapes to run and how to fit; `measurement` runs them.
"""

from __future__ import annotations

import gc
import itertools
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from halfreel_video.clip import ClipRequest
from halfreel_video.coefficients import CALIBRATED, FUSED, PLAIN, Coefficients, Line, StepSpeed, lever_key
from halfreel_video.estimate import ITEM_BYTES, LATENT_PX, Shape
from halfreel_video.fused import has_kernels
from halfreel_video.layout import UNET
from halfreel_video.levers import SAVER_CHUNK_COUNT, SDPA, SLICED, Levers
from halfreel_video.measurement import Measurement, Taken
from halfreel_video.model import VideoModel

# Width, height and frames, each in parts of the model's own: sizes from small to a little above, wide and high.
SHAPES = (
    (0.25, 0.44, 0.32),
    (0.5, 0.56, 0.56),
    (0.75, 0.89, 0.6),
    (0.56, 1.78, 0.36),
    (1.0, 1.0, 1.0),
    (1.25, 1.11, 0.8),
)
WAYS = (
    (1, SDPA),
    (2, SDPA),
    (4, SDPA),
    (SAVER_CHUNK_COUNT, SDPA),
    (SAVER_CHUNK_COUNT, SLICED),
)
# A plan that is a little too high costs nothing; one that is too low ends a clip. Of the whole, weights included.
_TOLERANCE = 0.005


@dataclass(frozen=True)
class Sample:
    """One phase that was run by itself.

    Attributes:
        line: whose line it is a point of: a `lever_key`, "decode" and frames at once, or another phase.
        unit_bytes: its work.
        bytes_beside: what the allocator held at its peak beside the weights or, of work that is held to its plan, what
            was live.
        weight_bytes: the weights.
        seconds: of one step, or of the phase.
        cells, cells_per_frame: latent cells of a step.
    """

    line: str
    unit_bytes: int
    bytes_beside: int
    weight_bytes: int
    seconds: float
    cells: int = 0
    cells_per_frame: int = 0


def calibrate(
    model: VideoModel,
    context_bytes: Callable[[], int],
    told: Callable[[Sample], None] = lambda _: None,
    shapes: Sequence[tuple[float, float, float]] = SHAPES,
    ways: Sequence[tuple[int, str]] = WAYS,
) -> Coefficients:
    """Runs every phase at several shapes, and fits the lines.

    Args:
        model: loaded, on a GPU, used by nobody else meanwhile.
        context_bytes: what the driver keeps for the process beside the allocator, asked at the end.
        told: hears of every sample.
        shapes: width, height and frames in parts of the model's own.
        ways: parts that feed-forward layers are run in and the attention backend; the first must be (1, "sdpa").

    Raises:
        torch.OutOfMemoryError: not even the smallest shapes have room; larger ones are left out.
    """
    if has_kernels(model.layout.device):
        _try_fused(model)
    samples = _samples(model, told, shapes, ways)
    return fitted(samples, model.device.name, context_bytes(), copy_rate(model))


def fitted(samples: Sequence[Sample], card: str, context_bytes: int, copy_bytes_s: float) -> Coefficients:
    """The lines of samples that were measured on a card."""
    lines = {name: fit([each for each in samples if each.line == name]) for name in {each.line for each in samples}}
    keys = [name for name in lines if "/" in name]
    decoded = {
        kind: [each.seconds / each.cells for each in samples if re.fullmatch(rf"{lead} \d", each.line)]
        for kind, lead in ((PLAIN, "decode"), (FUSED, f"decode {FUSED}"))
    }
    return Coefficients(
        card=card,
        source=CALIBRATED,
        context_bytes=context_bytes,
        denoise={key: lines[key] for key in keys},
        image_encode=lines["image_encode"],
        vae_encode=lines["vae_encode"],
        decode={name.removeprefix("decode "): line for name, line in lines.items() if name.startswith("decode ")},
        keyframe=lines["keyframe"],
        step={key: fit_speed([each for each in samples if each.line == key]) for key in keys},
        decode_s={kind: statistics.median(seconds) for kind, seconds in decoded.items() if seconds},
        encode_s=statistics.median(each.seconds for each in samples if each.line.endswith("_encode")),
        keyframe_s=statistics.median(each.seconds for each in samples if each.line == "keyframe"),
        copy_bytes_s=copy_bytes_s,
    )


def fit(samples: Sequence[Sample]) -> Line:
    """A line that no sample is over by more than 0.5 % of its whole, weights included.

    The nearest line first, by the share of the whole that it misses, then raised: convolutions take workspaces that
    depend on the exact size, so that samples lie up to a tenth around a line, and a plan may not be below them.
    """
    units = np.array([each.unit_bytes for each in samples], float)
    beside = np.array([each.bytes_beside for each in samples], float)
    whole = np.maximum(1.0, beside + np.array([each.weight_bytes for each in samples], float))
    design = np.stack([np.ones_like(units), units], axis=1) / whole[:, None]
    base, slope = np.linalg.lstsq(design, beside / whole, rcond=None)[0]
    if base < 0 or len(set(units)) == 1:  # no phase gives memory back
        base, slope = 0.0, float(np.sum(units * beside / whole**2) / np.sum(units**2 / whole**2))
    low = beside - _TOLERANCE * whole
    raised = max(1.0, float(np.max(low / np.maximum(1.0, base + slope * units))))
    return Line(float(base) * raised, float(slope) * raised)


def fit_speed(samples: Sequence[Sample]) -> StepSpeed:
    """Seconds of a step from its cells and its pairs of cells within a frame; none of the three below zero.

    Long steps count more than short ones, whose time is that of starting kernels.
    """
    cells = np.array([each.cells for each in samples], float)
    pairs = cells * np.array([each.cells_per_frame for each in samples], float)
    seconds = np.array([each.seconds for each in samples], float)
    columns = [np.ones_like(cells), cells, pairs]
    used = [0, 1, 2]
    while True:
        design = np.stack([columns[index] for index in used], axis=1)
        found = np.linalg.lstsq(design, seconds, rcond=None)[0]
        if (found >= 0).all() or len(used) == 1:
            break
        used.pop(int(np.argmin(found)))
    values = dict(zip(used, (float(each) for each in found), strict=True))
    return StepSpeed(values.get(0, 0.0), values.get(1, 0.0), values.get(2, 0.0))


def copy_rate(model: VideoModel) -> float:
    """Bytes a second from the host to the device, of the UNet's weights as they move."""
    layout = model.layout
    layout.arrange(Levers(offload_idle_parts=True))
    layout.park_all()
    layout.use(UNET)
    rates = []
    for _ in range(3):
        layout.park(UNET)
        rates.append(_timed_copy(model))
    return statistics.median(rates)


def _timed_copy(model: VideoModel) -> float:
    if model.device.kind == "cuda":
        torch.cuda.synchronize()
    began_at = time.monotonic()
    model.layout.use(UNET)
    if model.device.kind == "cuda":
        torch.cuda.synchronize()
    return model.layout.device_bytes() / max(1e-9, time.monotonic() - began_at)


def _try_fused(model: VideoModel) -> None:
    """Makes the fused blocks ready, where there are any and all weights have room at once."""
    try:
        model.layout.arrange(Levers())
    except torch.OutOfMemoryError:
        gc.collect()
        model.layout.release_cached()
        return
    model.layout.fused.check_all()
    model.layout.release_cached()


def _samples(
    model: VideoModel,
    told: Callable[[Sample], None],
    shapes: Sequence[tuple[float, float, float]],
    ways: Sequence[tuple[int, str]],
) -> list[Sample]:
    """Every sample that has room."""
    defaults, samples = model.defaults, []
    sizes = []
    for wide, high, long in shapes:
        width, height = _multiple_of_8(defaults.width_px * wide), _multiple_of_8(defaults.height_px * high)
        sizes.append((width, height, max(2, round(model.clip_frame_count * long))))
    for width, height, frames in sorted(sizes, key=lambda size: size[0] * size[1] * size[2]):
        clip = _clip(model, width, height, frames)
        try:
            for sample in (*_other_samples(model, clip), *_denoise_samples(model, clip, ways)):
                samples.append(sample)
                told(sample)
        except torch.OutOfMemoryError:
            gc.collect()
            model.layout.release_cached()
            if not samples:
                raise
            break
    model.layout.arrange(Levers())
    return samples


def _denoise_samples(model: VideoModel, clip: ClipRequest, ways: Sequence[tuple[int, str]]) -> list[Sample]:
    measurement, samples = Measurement(model), []
    fused = [(1, FUSED)] if model.layout.fused.ready else []
    for count, backend in (*ways, *fused):
        levers = Levers(
            attention_backend=SDPA if backend == FUSED else backend,
            feed_forward_chunk_count=count,
            offload_idle_parts=True,
            compiled=backend == FUSED,
        )
        # Both halves of guidance together, and where it is worth the time one alone.
        for guidance in (clip.guidance_scale, 1.0) if count in (1, SAVER_CHUNK_COUNT) else (clip.guidance_scale,):
            model.layout.arrange(levers)
            asked = replace(clip, levers=levers, guidance_scale=guidance)
            model.layout.use(UNET)
            _, taken = measurement.denoise(asked, measurement.conditioning(asked), timed=True)
            shape = Shape(clip.width_px, clip.height_px, clip.frame_count, 1, clip.step_count, guidance > 1, True)
            cells = shape.cells_at_once(levers)
            unit = cells * model.architecture.unet_channels * ITEM_BYTES[model.dtype_name]
            seconds = taken.piece_s[-1]
            key = lever_key(count, backend, 2 if guidance > 1 else 1)
            samples.append(
                _sample(key, unit, taken, seconds, cells, shape.cells_per_frame, live=levers.holds_denoising)
            )
    return samples


def _other_samples(model: VideoModel, clip: ClipRequest) -> list[Sample]:
    measurement, given, item = Measurement(model), model.architecture, ITEM_BYTES[model.dtype_name]
    model.layout.arrange(replace(clip.levers, offload_idle_parts=True))
    width, height = given.keyframe.size_for(clip.width_px, clip.height_px)
    picture, taken = measurement.keyframe(clip)
    drawn = width * height
    unit = (2 if given.keyframe.guidance_scale > 1 else 1) * drawn // LATENT_PX**2 * given.keyframe_channels * item
    samples = [_sample("keyframe", unit, taken, taken.seconds)]
    pixels = clip.width_px * clip.height_px
    encoded_item = 4 if given.vae_upcast else item
    _, looking, encoding = measurement.encode(clip, picture)
    samples.append(_sample("image_encode", 224 * 224 * 3 * item, looking, looking.seconds))
    upcast = given.vae_count * (encoded_item - item)
    encoding.reserved_bytes, encoding.allocated_bytes = (
        encoding.reserved_bytes - upcast,
        encoding.allocated_bytes - upcast,
    )
    samples.append(_sample("vae_encode", pixels * given.vae_channels * encoded_item, encoding, encoding.seconds))
    leads = {"decode": False} | ({f"decode {FUSED}": True} if model.layout.fused.ready else {})
    for chunk, (lead, compiled) in itertools.product((1, 2, 4, 8), leads.items()):
        if chunk > clip.frame_count:
            break
        levers = replace(clip.levers, decode_chunk_frame_count=chunk, offload_idle_parts=True, compiled=compiled)
        model.layout.arrange(levers)
        count = 2 * chunk if compiled else chunk  # the first compiles, which is no part of the time
        size = (1, count, 4, clip.height_px // LATENT_PX, clip.width_px // LATENT_PX)
        latents = torch.randn(size, device=model.layout.device, dtype=model.layout.dtype)
        _, taken = measurement.decode(latents, levers)
        frames_pixels = chunk * pixels
        line, unit = f"{lead} {min(chunk, 4)}", frames_pixels * given.vae_channels * item
        samples.append(_sample(line, unit, taken, taken.piece_s[-1], frames_pixels, live=True))
    return samples


def _sample(
    line: str,
    unit_bytes: int,
    taken: Taken,
    seconds: float,
    cells: int = 0,
    cells_per_frame: int = 0,
    *,
    live: bool = False,
) -> Sample:
    beside = (taken.allocated_bytes if live else taken.reserved_bytes) - taken.weight_bytes
    return Sample(line, unit_bytes, beside, taken.weight_bytes, seconds, cells, cells_per_frame)


def _clip(model: VideoModel, width_px: int, height_px: int, frame_count: int) -> ClipRequest:
    defaults = model.defaults
    return ClipRequest(
        request_id="calibration",
        prompt="a red circle over a blue sky",
        image=None,
        width_px=width_px,
        height_px=height_px,
        frame_count=frame_count,
        step_count=2,
        fps=defaults.fps,
        motion_bucket=defaults.motion_bucket,
        guidance_scale=max(2.0, defaults.guidance_scale),
        seed=0,
        preview=False,
        levers=Levers(),
        segment_frame_count=frame_count,
    )


def _multiple_of_8(value: float) -> int:
    return max(64, round(value / 8) * 8)


def as_json(sample: Sample) -> dict[str, object]:
    """A sample as plain values."""
    return asdict(sample)
