"""What an operator watches on a terminal: each GPU, who holds what of it, what waits, and the films in the making."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from halfreel_client.display.amounts import bytes_text
from halfreel_client.display.memory_table import device_text
from halfreel_client.display.printable import printable
from halfreel_client.film import Film, FilmState, SceneState
from halfreel_client.memory import DeviceKind, DeviceMemory, MemoryReport, ServerMemory

_BAR_COLUMNS = 30
_NEARLY_FULL = 0.9
# In the order in which films go through them.
_IN_THE_MAKING = (FilmState.QUEUED, FilmState.WRITING_SCRIPT, FilmState.RENDERING, FilmState.JOINING)
_FILM_LINES = 12
_TITLE_COLUMNS = 36


def watch_view(servers: Sequence[ServerMemory], films: Sequence[Film]) -> RenderableType:
    """All of it.

    Args:
        servers: every model server that the gateway knows.
        films: the newest films, whatever their state.
    """
    making = [film for film in films if not film.state.ended]
    parts: list[RenderableType] = []
    for lines in _devices(servers):
        parts += [*lines, Text()]
    parts += [
        Text(f"{each.kind} {each.address}: {printable(each.problem)}", style="yellow") for each in _absent(servers)
    ]
    parts += [_queues(making), *_suggestions(servers)]
    if making:
        parts += [Text(), _films(making)]
    return Group(*parts)


def _absent(servers: Sequence[ServerMemory]) -> list[ServerMemory]:
    return [server for server in servers if server.report is None]


def _devices(servers: Sequence[ServerMemory]) -> Iterator[list[RenderableType]]:
    """For each device a line of its own, and the servers on it."""
    found: dict[str, list[tuple[ServerMemory, MemoryReport, DeviceMemory]]] = {}
    for server in servers:
        if (report := server.report) is not None:
            for device in report.devices:
                # Two machines may both have a device that is called "cpu".
                host = server.address.rpartition(":")[0] if device.device_kind is DeviceKind.CPU else ""
                found.setdefault(f"{device.gpu_uuid}{host}", []).append((server, report, device))
    for held in found.values():
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for name in ("server", "model", "now", "allocated", "reserved", "minute", "budget", "left"):
            table.add_column(name, justify="left" if name in ("server", "model", "now") else "right", no_wrap=True)
        table.add_column("peaks by phase")
        for server, report, device in held:
            table.add_row(
                Text(f"{server.kind} {server.address}", style="bold"),
                _state(report),
                Text(device.current_phase or "idle", style="cyan" if device.current_phase else "dim"),
                bytes_text(device.allocated_bytes),
                bytes_text(device.reserved_bytes),
                bytes_text(device.recent_peak.reserved_bytes),
                bytes_text(device.budget_bytes) if device.budget_bytes else "-",
                bytes_text(device.headroom_bytes) if device.device_used_bytes or device.budget_bytes else "-",
                _phases(device),
            )
        yield [_bar(held[0][2]), table]


def _bar(device: DeviceMemory) -> Table:
    total, used = device.device_total_bytes, device.device_used_bytes
    line = Table.grid(padding=(0, 2))
    if not used or not total:
        line.add_row(Text(device_text(device), style="bold"), Text("its driver can't be asked", style="yellow"))
        return line
    style = "red" if used >= _NEARLY_FULL * total else "green"
    line.add_row(
        Text(device_text(device), style="bold"),
        ProgressBar(total=total, completed=used, width=_BAR_COLUMNS, complete_style=style, finished_style=style),
        Text(f"{bytes_text(used)} / {bytes_text(total)}"),
        Text(f"{used / total:.0%}", style=style),
    )
    return line


def _state(report: MemoryReport) -> Text:
    state = report.model_state
    style = {"awake": "green", "asleep": "dim", "wake_failed": "red"}.get(state, "yellow")
    return Text(state.replace("_", " "), style=style)


def _phases(device: DeviceMemory) -> Text:
    """The peak of each phase; beside it what its plan predicted, where that differs."""
    text = Text()
    for peak in device.phase_peaks:
        running = peak.phase == device.current_phase
        text.append(f"{printable(peak.phase)} ", style="cyan" if running else "dim")
        text.append(bytes_text(peak.peak.reserved_bytes), style="magenta")
        if predicted := peak.predicted_reserved_bytes:
            text.append(f" ({peak.peak.reserved_bytes / predicted - 1:+.0%})", style="dim")
        text.append("  ")
    return text


def _queues(making: Sequence[Film]) -> Text:
    """What waits and what is at work, over all films."""
    films = Counter(film.state for film in making)
    scenes = Counter(scene.state for film in making for scene in film.scenes)
    told = [f"{films[state]} {state.replace('_', ' ')}" for state in _IN_THE_MAKING if films[state]]
    waiting, working = scenes[SceneState.QUEUED], scenes[SceneState.RENDERING]
    return Text.assemble(
        ("films ", "bold"),
        ", ".join(told) or "none in the making",
        ("   scenes ", "bold"),
        f"{waiting} waiting, {working} at work, {scenes[SceneState.SUCCEEDED]} done",
    )


def _suggestions(servers: Sequence[ServerMemory]) -> list[Text]:
    return [
        Text(f"{server.kind} {server.address}: {printable(suggestion.text)}", style="yellow")
        for server in servers
        if server.report is not None
        for suggestion in server.report.suggestions
    ]


def _films(making: Sequence[Film]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("film", "state", "progress", "scenes", "title"):
        table.add_column(name, no_wrap=True)
    table.add_column("waits for")
    for film in making[:_FILM_LINES]:
        done = sum(scene.state is SceneState.SUCCEEDED for scene in film.scenes)
        title = printable(film.title or film.idea)
        table.add_row(
            Text(film.film_id[:12], style="dim"),
            Text(film.state.replace("_", " "), style="cyan"),
            ProgressBar(total=1.0, completed=film.progress_ratio, width=_BAR_COLUMNS // 2),
            f"{done}/{len(film.scenes)}" if film.scenes else "-",
            Text(title if len(title) <= _TITLE_COLUMNS else f"{title[: _TITLE_COLUMNS - 1]}…"),
            Text(printable(film.waiting_reason), style="yellow"),
        )
    if len(making) > _FILM_LINES:
        table.add_row(Text(f"and {len(making) - _FILM_LINES} more", style="dim"))
    return table
