"""One change of one film: what is done to it inside a transaction, and the events that tell of it.

It does not know the database: the store loads the film, hands this out, and writes what came of it.
"""

from __future__ import annotations

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import films


class SceneRecord:
    """A scene and what is kept of it beside the contract's message.

    Args:
        scene: the contract's message.
        done_ratio: how much of it is rendered, from 0 to 1; only grows.
        start_time_us: when rendering first began; 0 until then.
        end_time_us: when its clip was there; 0 until then.
    """

    def __init__(
        self, scene: pb.Scene, *, done_ratio: float = 0.0, start_time_us: int = 0, end_time_us: int = 0
    ) -> None:
        self.scene = scene
        self.done_ratio = done_ratio
        self.start_time_us = start_time_us
        self.end_time_us = end_time_us

    def begin(self) -> None:
        """A video server is at work on it: one attempt more."""
        self.scene.state = pb.Scene.STATE_RENDERING
        self.scene.attempt_count += 1
        self.start_time_us = self.start_time_us or films.now_us()

    def succeed(self, clip: pb.Artifact) -> None:
        """Its clip is there."""
        self.scene.state = pb.Scene.STATE_SUCCEEDED
        self.scene.clip.CopyFrom(clip)
        self.done_ratio = 1.0
        self.end_time_us = films.now_us()


class FilmChange:
    """A film under change: alter `film` and `scenes`, and say what happened.

    Args:
        film: the contract's message, its scenes left out.
        scenes: the film's scenes, in order.
        last_sequence_number: of the events stored so far.
    """

    def __init__(self, film: pb.Film, scenes: list[SceneRecord], last_sequence_number: int) -> None:
        self.film = film
        self.scenes = scenes
        self.events: list[pb.WatchFilmResponse] = []
        self._last_sequence_number = last_sequence_number
        self._time = films.timestamp(films.now_us())

    @property
    def last_sequence_number(self) -> int:
        """The number of the last event, those of this change included."""
        return self._last_sequence_number + len(self.events)

    def enter(self, state: pb.Film.State.ValueType) -> None:
        """The film goes on to another state."""
        self.film.state = state
        self.film.waiting_reason = ""
        if films.has_ended(state):
            self.film.end_time.CopyFrom(self._time)
        changed = pb.WatchFilmResponse.StateChanged(
            state=state, title=self.film.title, progress_ratio=self.progress_ratio()
        )
        self._tell(pb.WatchFilmResponse(state_changed=changed))

    def tell_scene(self, index: int) -> None:
        """A scene was written, or its state changed."""
        if self.scenes[index].scene.state == pb.Scene.STATE_RENDERING:
            self.film.waiting_reason = ""
        self._tell(pb.WatchFilmResponse(scene_changed=self.scenes[index].scene))

    def succeed(self, video: pb.Artifact) -> None:
        """The film's MP4 is there, which ends the film."""
        self.film.video.CopyFrom(video)
        self._tell(pb.WatchFilmResponse(video_ready=video))
        self.enter(pb.Film.STATE_SUCCEEDED)

    def fail(self, error: pb.FilmError, failed_scene: int | None = None) -> None:
        """The film can't be made, which ends it; scenes still to be rendered are cancelled.

        Args:
            error: why.
            failed_scene: the scene that could not be rendered, where it was one.
        """
        if failed_scene is not None:
            self.scenes[failed_scene].scene.state = pb.Scene.STATE_FAILED
            self.scenes[failed_scene].scene.error.CopyFrom(error)
            self.tell_scene(failed_scene)
        self._cancel_scenes()
        self.film.error.CopyFrom(error)
        self._tell(pb.WatchFilmResponse(failed=error))
        self.enter(pb.Film.STATE_FAILED)

    def cancel(self) -> None:
        """The film is cancelled, which ends it."""
        self._cancel_scenes()
        self.enter(pb.Film.STATE_CANCELLED)

    def progress_ratio(self) -> float:
        """Of all the work, how much is done."""
        return films.progress_ratio(self.film.state, (record.done_ratio for record in self.scenes))

    def _cancel_scenes(self) -> None:
        for index, record in enumerate(self.scenes):
            if record.scene.state in films.SCENE_AT_WORK:
                record.scene.state = pb.Scene.STATE_CANCELLED
                self.tell_scene(index)

    def _tell(self, event: pb.WatchFilmResponse) -> None:
        # A copy of what happened: the film may change again in the same transaction.
        told = pb.WatchFilmResponse()
        told.CopyFrom(event)
        told.sequence_number = self.last_sequence_number + 1
        told.event_time.CopyFrom(self._time)
        self.film.update_time.CopyFrom(self._time)
        self.events.append(told)
