"""What a finished film was and what it took, as tables for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfreel_client.display.amounts import bytes_text, seconds_text
from halfreel_client.display.printable import printable
from halfreel_client.display.summary import Summary, cheaper_text
from halfreel_client.film import Film


def summary_tables(film: Film, summary: Summary, path: Path | None) -> RenderableType:
    """Script, figures of the film, seconds of the stages, peaks of the phases, and where the film is."""
    parts: list[RenderableType] = [Text(printable(film.title), style="bold")]
    script = Table.grid(padding=(0, 2))
    for scene in film.scenes:
        script.add_row(
            Text(f"{scene.index + 1:2}", style="dim"), Text(printable(scene.narration) + cheaper_text(scene))
        )
    parts.append(script)
    if film.video is not None:
        parts.append(
            Text(
                f"\n{summary.scene_count} scenes, {summary.frame_count} frames of {film.video.width_px}×"
                f"{film.video.height_px}, {seconds_text(summary.film_seconds)} of film at {film.video.fps} frames/s\n"
            )
        )
    parts.append(_side_by_side(_stage_table(summary), _peak_table(summary)))
    if path is not None and film.video is not None:
        size = f"  {bytes_text(film.video.size_bytes)}, seed {film.settings.seed}"
        parts.append(Text.assemble("\n", (str(path), "bold green"), (size, "dim")))
    return Group(*parts)


def _stage_table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("took", justify="right")
    for name, seconds in summary.stage_seconds:
        table.add_row(name, seconds_text(seconds), style="bold" if name == "total" else "")
    return table


def _peak_table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("server", "phase"):
        table.add_column(name)
    for name in ("peak allocated", "peak reserved"):
        table.add_column(name, justify="right")
    for peak in summary.peaks:
        table.add_row(peak.server, peak.phase, bytes_text(peak.allocated_bytes), bytes_text(peak.reserved_bytes))
    return table


def _side_by_side(left: Table, right: Table) -> Table:
    grid = Table.grid(padding=(0, 6))
    grid.add_row(left, right)
    return grid
