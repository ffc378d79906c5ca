"""What a finished film was and what it took, as figures; it shows nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from halfreel_client.film import Film, Scene
from halfreel_client.memory import PhasePeak, ServerMemory

_STAGES = ("keyframe", "encode", "denoise", "decode", "mux")


@dataclass(frozen=True, slots=True)
class PhaseFigure:
    """The peak of one phase on one server, the largest of all scenes."""

    server: str
    phase: str
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A finished film. `stage_seconds` are sums over all scenes, in order of the work, then the total."""

    scene_count: int
    frame_count: int
    film_seconds: float
    stage_seconds: tuple[tuple[str, float], ...]
    peaks: tuple[PhaseFigure, ...]


def summary_of(film: Film, memory: Iterable[ServerMemory] = ()) -> Summary:
    """The summary of a film; `memory` adds the phases that no film has, such as "load"."""
    stages: list[tuple[str, float]] = []
    if film.script_duration_s is not None:
        stages.append(("script", film.script_duration_s))
    told = [figure for scene in film.scenes for figure in scene.stages]
    names = [*_STAGES, *dict.fromkeys(figure.stage for figure in told if figure.stage not in _STAGES)]
    for name in names:
        durations = [figure.duration_s for figure in told if figure.stage == name]
        if durations:
            stages.append((name, sum(durations)))
    if film.join_duration_s is not None:
        stages.append(("join", film.join_duration_s))
    if film.end_time is not None:
        stages.append(("total", (film.end_time - film.create_time).total_seconds()))
    video = film.video
    return Summary(
        scene_count=len(film.scenes),
        frame_count=video.frame_count if video else 0,
        film_seconds=video.duration_s if video else 0.0,
        stage_seconds=tuple(stages),
        peaks=(
            *_peaks("llm", [*_loads("llm", memory), *film.script_phase_peaks]),
            *_peaks(
                "video", [*_loads("video", memory), *(peak for scene in film.scenes for peak in scene.phase_peaks)]
            ),
        ),
    )


def cheaper_text(scene: Scene) -> str:
    """What was given up of a scene, to render it within the memory that there was or for time; mostly empty."""
    given_up = [rung.replace("_", " ") for rung in scene.rungs]
    if scene.variant is not None and scene.clip is not None:
        given_up.insert(0, f"{scene.clip.width_px}x{scene.clip.height_px}")
    cheaper = f"; made cheaper to fit: {', '.join(given_up)}" if given_up else ""
    traded = [trade.replace("_", " ") for trade in scene.trades]
    return cheaper + (f"; quality given for time: {', '.join(traded)}" if traded else "")


def _loads(kind: str, memory: Iterable[ServerMemory]) -> list[PhasePeak]:
    return [
        peak
        for server in memory
        if server.kind == kind and server.report is not None
        for device in server.report.devices
        for peak in device.phase_peaks
        if peak.phase == "load"
    ]


def _peaks(server: str, peaks: list[PhasePeak]) -> list[PhaseFigure]:
    return [
        PhaseFigure(
            server,
            phase,
            max(item.peak.allocated_bytes for item in peaks if item.phase == phase),
            max(item.peak.reserved_bytes for item in peaks if item.phase == phase),
        )
        for phase in dict.fromkeys(item.phase for item in peaks)
    ]
