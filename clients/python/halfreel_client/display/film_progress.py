"""How far a film is, as its events tell it; it shows nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from halfreel_client.display.partial_script import PartialScript, read_partial
from halfreel_client.film import Film, FilmError, FilmState, Scene, SceneState
from halfreel_client.film_events import (
    Failed,
    FilmEvent,
    Rejoining,
    SceneChanged,
    SceneStage,
    SceneStep,
    ScriptDelta,
    Snapshot,
    StateChanged,
    Waiting,
)

# Parts of the whole work, as the gateway counts them; joining is the rest.
_SCRIPT_SHARE = 0.10
_SCENES_SHARE = 0.85
_MOST_SCENES = 8


@dataclass(frozen=True, slots=True)
class SceneProgress:
    """One scene. Stage and steps are of the running attempt; `remaining_s` is None until it is known."""

    narration: str = ""
    state: SceneState = SceneState.QUEUED
    stage: str = ""
    step_index: int = 0
    step_count: int = 0
    remaining_s: float | None = None

    @property
    def ratio(self) -> float:
        """Of the scene's work, how much is done: its denoising steps, which are most of it."""
        if self.state is SceneState.SUCCEEDED:
            return 1.0
        return self.step_index / self.step_count if self.step_count else 0.0


class FilmProgress:
    """A film as far as events have told."""

    def __init__(self) -> None:
        self.film_id = ""
        self.state = FilmState.UNKNOWN
        self.title = ""
        self.scenes: dict[int, SceneProgress] = {}
        self.progress_ratio = 0.0
        self.waiting_reason = ""
        self.rejoining = False
        self.error: FilmError | None = None
        self._known_number = 0
        self._script_text = ""
        self._script_attempt = 0

    @property
    def ratio(self) -> float:
        """Of all the work, how much is done: as the gateway last said, and what the scenes' steps have added since."""
        done = sum(scene.ratio for scene in self.scenes.values())
        if self.state is FilmState.WRITING_SCRIPT:
            return max(self.progress_ratio, _SCENES_SHARE * done / _MOST_SCENES)
        if self.state is not FilmState.RENDERING or not self.scenes:
            return self.progress_ratio
        return max(self.progress_ratio, _SCRIPT_SHARE + _SCENES_SHARE * done / len(self.scenes))

    @property
    def script(self) -> PartialScript:
        """The script as far as it is known: stored scenes, and what is written beyond them."""
        written = read_partial(self._script_text)
        narrations = dict(enumerate(written.narrations)) | {
            index: scene.narration for index, scene in self.scenes.items()
        }
        return PartialScript(self.title or written.title, tuple(narrations[index] for index in sorted(narrations)))

    def take(self, event: FilmEvent) -> None:
        """Goes on by one event; stored events that the last snapshot holds already are passed over."""
        what = event.what
        if isinstance(what, Snapshot):
            self._known_number = event.sequence_number
        elif 0 < event.sequence_number <= self._known_number:
            return
        self.rejoining = isinstance(what, Rejoining)
        match what:
            case Snapshot(film):
                self._take_film(film)
            case StateChanged(state, title, progress_ratio):
                self.state = state
                self.title = title or self.title
                self.progress_ratio = max(self.progress_ratio, progress_ratio)
            case SceneChanged(scene):
                self._take_scene(scene)
            case Failed(error):
                self.error = error
            case ScriptDelta(text, attempt):
                if attempt != self._script_attempt:
                    self._script_text, self._script_attempt = "", attempt
                self._script_text += text
            case SceneStage(scene_index, stage):
                self._change(scene_index, stage=stage, remaining_s=None)
            case SceneStep(scene_index, step_index, step_count, _, remaining_s):
                self._change(scene_index, step_index=step_index, step_count=step_count, remaining_s=remaining_s)
            case Waiting(reason):
                self.waiting_reason = reason

    def _take_film(self, film: Film) -> None:
        self.film_id, self.state, self.error = film.film_id, film.state, film.error
        self.title = film.title or self.title
        self.waiting_reason = film.waiting_reason
        self.progress_ratio = max(self.progress_ratio, film.progress_ratio)
        for scene in film.scenes:
            self._take_scene(scene)

    def _take_scene(self, scene: Scene) -> None:
        known = self.scenes.get(scene.index, SceneProgress())
        if scene.state is not known.state:
            # A new state is a new beginning: a scene that is queued again shows no steps of the lost attempt.
            known = SceneProgress()
        self.scenes[scene.index] = replace(known, narration=scene.narration, state=scene.state)

    def _change(self, scene_index: int, **changes: str | int | float | None) -> None:
        known = self.scenes.get(scene_index, SceneProgress(state=SceneState.RENDERING))
        self.scenes[scene_index] = replace(known, **changes)  # type: ignore[arg-type]  # by name, from two callers
