"""A film in the making, live on a terminal: script, a bar for each scene, memory of each server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from halfreel_client.display.amounts import seconds_text
from halfreel_client.display.film_progress import FilmProgress, SceneProgress
from halfreel_client.display.memory_table import memory_lines
from halfreel_client.display.printable import printable
from halfreel_client.display.summary import summary_of
from halfreel_client.display.summary_table import summary_tables
from halfreel_client.film import Film, FilmState, SceneState
from halfreel_client.film_events import FilmEvent
from halfreel_client.memory import ServerMemory
from halfreel_client.supervisor.supervisor import Note, ServerState, ServerStatus

_REFRESHES_PER_S = 8
_BAR_COLUMNS = 20
_STATE_STYLES = {SceneState.SUCCEEDED: "green", SceneState.FAILED: "red", SceneState.RENDERING: "cyan"}


class LiveView:
    """Redraws itself; what has happened stays above, and the summary is printed at the end."""

    def __init__(self, console: Console, idea: str) -> None:
        self._console = console
        self._idea = idea
        self._began_s = time.monotonic()
        self._progress = FilmProgress()
        self._servers: Sequence[ServerStatus] = ()
        self._memory: Sequence[ServerMemory] = ()
        self._ending = False
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def servers(self, statuses: Sequence[ServerStatus]) -> None:
        """Shown while one of them does not serve."""
        self._servers = statuses

    def note(self, note: Note) -> None:
        """Printed above."""
        self._console.print(Text(printable(f"{note.name}: {note.text}"), style="yellow"))

    def accepted(self, film: Film) -> None:
        """Printed above, so that the film can be found again."""
        self._console.print(Text(f"film {film.film_id}, seed {film.settings.seed}", style="dim"))

    def event(self, event: FilmEvent) -> None:
        """Shown at the next redrawing."""
        self._progress.take(event)

    def memory(self, servers: Sequence[ServerMemory]) -> None:
        """Shown at the next redrawing."""
        self._memory = servers

    def ending(self) -> None:
        """Shown until the end."""
        self._ending = True

    def done(self, film: Film, memory: Sequence[ServerMemory], path: Path | None) -> None:
        """Prints the summary in place of the live picture."""
        self._live.stop()
        self._console.print(summary_tables(film, summary_of(film, memory), path))

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if any(status.state is not ServerState.SERVING for status in self._servers):
            parts.append(server_lines(self._servers))
        progress = self._progress
        parts.append(self._header())
        if progress.state is not FilmState.UNKNOWN:
            parts.append(self._scenes())
            if progress.state in (FilmState.QUEUED, FilmState.WRITING_SCRIPT):
                parts.append(self._script())
            parts.append(_overall(progress))
            if progress.rejoining:
                parts.append(Text("the gateway does not answer; joining again", style="yellow"))
            elif progress.waiting_reason:
                parts.append(Text(f"waiting: {printable(progress.waiting_reason)}", style="yellow"))
        if self._ending:
            parts.append(Text("ending in good order; Ctrl-C again leaves at once", style="bold yellow"))
        if self._memory:
            parts += [Text(), memory_lines(self._memory)]
        return Group(*parts)

    def _header(self) -> Text:
        title = self._progress.script.title or self._idea
        state = "" if self._progress.state is FilmState.UNKNOWN else self._progress.state.replace("_", " ")
        elapsed = seconds_text(time.monotonic() - self._began_s)
        return Text.assemble((printable(title), "bold"), "  ", (state, "cyan"), "  ", (elapsed, "dim"))

    def _script(self) -> Table:
        """What is written beyond the scenes that are stored."""
        table = Table.grid(padding=(0, 1))
        narrations = self._progress.script.narrations
        for index, narration in enumerate(narrations):
            if index in self._progress.scenes:
                continue
            cursor = "▌" if index == len(narrations) - 1 else ""
            table.add_row(Text(f"{index + 1:2}", style="dim"), Text(printable(narration) + cursor))
        return table

    def _scenes(self) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=2)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(width=9)
        table.add_column(width=_BAR_COLUMNS)
        table.add_column(width=7, justify="right")
        table.add_column(width=11, justify="right")
        for index, scene in sorted(self._progress.scenes.items()):
            style = _STATE_STYLES.get(scene.state, "dim")
            table.add_row(
                Text(f"{index + 1:2}", style="dim"),
                Text(printable(scene.narration)),
                Text(_stage_text(scene), style=style),
                ProgressBar(total=1.0, completed=scene.ratio, width=_BAR_COLUMNS),
                Text(f"{scene.step_index}/{scene.step_count}" if scene.step_count else ""),
                Text(_remaining_text(scene), style="dim"),
            )
        return table


def server_lines(statuses: Sequence[ServerStatus]) -> Table:
    """One line for each local server."""
    table = Table.grid(padding=(0, 2))
    for status in statuses:
        serving = status.state is ServerState.SERVING
        table.add_row(
            Text(status.name, style="bold"),
            Text(status.state, style="green" if serving else "yellow"),
            Text(status.address, style="dim"),
            Text(f"pid {status.pid}" if status.pid else "", style="dim"),
            Text(printable(status.problem), style="yellow"),
        )
    return table


def _overall(progress: FilmProgress) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(ratio=1)
    table.add_column(width=5, justify="right")
    bar = ProgressBar(total=1.0, completed=progress.ratio)
    table.add_row(bar, f"{progress.ratio:.0%}")
    return table


def _stage_text(scene: SceneProgress) -> str:
    if scene.state is SceneState.RENDERING:
        return scene.stage
    return "done" if scene.state is SceneState.SUCCEEDED else scene.state


def _remaining_text(scene: SceneProgress) -> str:
    if scene.state is not SceneState.RENDERING or scene.remaining_s is None:
        return ""
    return f"{seconds_text(scene.remaining_s)} left"
