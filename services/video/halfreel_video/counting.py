"""Counts clips: verdicts, stages, frames, predictions.

It does not know the model, nor how the figures are shown; steps, shortages and NaN are counted by the job itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from halfreel_runtime.instruments import Instruments
from halfreel_runtime.plan import PlanRefused
from halfreel_runtime.tracing import record_span
from halfreel_video.clip import ClipRequest
from halfreel_video.events import ClipDone
from halfreel_video.levers import Levers

# What the ladder gives up to go on when memory runs out.
RUNGS = ("decode_chunk", "unet_off", "decode_on_cpu", "replica_off", *(lever.name for lever in fields(Levers)))


@contextmanager
def refusals_counted(instruments: Instruments) -> Iterator[None]:
    """Counts a clip that is refused by its plan."""
    try:
        yield
    except PlanRefused:
        instruments.admission("refused")
        raise


def count_admitted(instruments: Instruments, verdict: str, *, cheaper: bool) -> None:
    """A clip was let in.

    Args:
        instruments: count it.
        verdict: of the plan that is followed.
        cheaper: whether that is of a cheaper form than was asked for.
    """
    instruments.admission("cheaper_fits" if cheaper else verdict)


def count_clip(instruments: Instruments, clip: ClipRequest, done: ClipDone) -> None:
    """A clip is finished."""
    instruments.clip(frame_count=clip.frame_count, clip_s=clip.frame_count / clip.fps, work_s=done.generate_s)
    for stage, seconds in done.stage_s.items():
        instruments.stage_took(stage.value, seconds)
    for peak in done.phase_peaks:
        instruments.prediction(peak.phase, peak.predicted_reserved_bytes, peak.peak.reserved_bytes)
    began_s = time.monotonic() - done.generate_s
    record_span("queue", began_s - done.queue_s, began_s)
