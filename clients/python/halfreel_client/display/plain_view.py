"""A film in the making as plain lines, one for each event worth telling: for logs and pipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from halfreel_client.display.amounts import bytes_text, seconds_text
from halfreel_client.display.printable import printable
from halfreel_client.display.summary import cheaper_text, summary_of
from halfreel_client.film import Film, FilmState, Scene, SceneState
from halfreel_client.film_events import (
    FilmEvent,
    Rejoining,
    SceneChanged,
    SceneStage,
    Snapshot,
    StateChanged,
    Waiting,
)
from halfreel_client.memory import ServerMemory
from halfreel_client.supervisor.supervisor import Note, ServerState, ServerStatus


class PlainView:
    """Lines of text.

    Args:
        write: takes one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = lambda line: write(printable(line))
        self._server_states: dict[str, ServerState] = {}
        self._film_state = FilmState.UNKNOWN
        self._title = ""
        self._scene_states: dict[int, SceneState] = {}
        self._waiting_reason = ""
        self._known_number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def servers(self, statuses: Sequence[ServerStatus]) -> None:
        """One line for every server whose state changed."""
        for status in statuses:
            if self._server_states.get(status.name) is not status.state:
                self._server_states[status.name] = status.state
                if status.state in (ServerState.LOADING, ServerState.SERVING):
                    self._write(f"{status.name}: {status.state} ({status.address})")

    def note(self, note: Note) -> None:
        """One line."""
        self._write(f"{note.name}: {note.text}")

    def accepted(self, film: Film) -> None:
        """One line."""
        self._write(f"film {film.film_id}: accepted, seed {film.settings.seed}")

    def event(self, event: FilmEvent) -> None:
        """A line for what a person would want to find in a log; none for steps and text."""
        if 0 < event.sequence_number <= self._known_number and not isinstance(event.what, Snapshot):
            return  # the snapshot after a rejoining has told it
        match event.what:
            case Snapshot(film):
                self._known_number = event.sequence_number
                self._state(film.state, film.title)
                for scene in film.scenes:
                    self._scene(scene)
                self._waiting(film.waiting_reason)
            case StateChanged(state, title, _):
                self._state(state, title)
            case SceneChanged(scene):
                self._scene(scene)
            case SceneStage(scene_index, stage):
                self._write(f"scene {scene_index + 1}: {stage}")
            case Waiting(reason):
                self._waiting(reason)
            case Rejoining(error, delay_s):
                self._write(f"{error.message}; joins again in {seconds_text(delay_s)}")

    def memory(self, servers: Sequence[ServerMemory]) -> None:
        """Nothing: the peaks are told at the end."""

    def ending(self) -> None:
        """One line."""
        self._write("ending in good order; a second signal ends at once")

    def done(self, film: Film, memory: Sequence[ServerMemory], path: Path | None) -> None:
        """The summary, a figure a line."""
        summary = summary_of(film, memory)
        if film.video is not None:
            self._write(
                f"{summary.scene_count} scenes, {summary.frame_count} frames of {film.video.width_px}x"
                f"{film.video.height_px}, {seconds_text(summary.film_seconds)} of film at {film.video.fps} frames/s"
            )
        for name, seconds in summary.stage_seconds:
            self._write(f"{name}: {seconds_text(seconds)}")
        for peak in summary.peaks:
            self._write(
                f"peak of {peak.server} in {peak.phase}: {bytes_text(peak.allocated_bytes)} allocated, "
                f"{bytes_text(peak.reserved_bytes)} reserved"
            )
        if path is not None and film.video is not None:
            self._write(f"film: {path} ({bytes_text(film.video.size_bytes)}, seed {film.settings.seed})")

    def _state(self, state: FilmState, title: str) -> None:
        if title and title != self._title:
            self._title = title
            self._write(f"title: {title}")
        if state is not self._film_state:
            self._film_state = state
            self._write(f"film: {state.replace('_', ' ')}")

    def _scene(self, scene: Scene) -> None:
        known = self._scene_states.get(scene.index)
        if known is None:
            self._write(f"scene {scene.index + 1}: “{scene.narration}”")
        if known is not scene.state:
            self._scene_states[scene.index] = scene.state
            if scene.clip is not None:
                took_s = sum(figure.duration_s for figure in scene.stages)
                self._write(
                    f"scene {scene.index + 1}: done, {scene.clip.frame_count} frames in {seconds_text(took_s)}"
                    + cheaper_text(scene)
                )
            elif scene.error is not None:
                self._write(f"scene {scene.index + 1}: {scene.error.message}")

    def _waiting(self, reason: str) -> None:
        if reason != self._waiting_reason:
            self._waiting_reason = reason
            self._write(f"waiting: {reason}" if reason else "goes on")
