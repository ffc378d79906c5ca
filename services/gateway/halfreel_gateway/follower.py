"""Follows a script while it is written: says of each scene when it may be rendered.

Where both models are in memory together, a scene may be rendered as soon as it is written; where they take turns on one
device, the whole script is written first. It does not know who writes the script or renders the scenes.
"""

from __future__ import annotations

from collections.abc import Callable

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import films
from halfreel_gateway.failures import FilmEndedError
from halfreel_gateway.running import RunningSteps
from halfreel_gateway.store import FilmStore

# The steps of this process are woken at once; this is for a script that another gateway writes.
_LOOK_EVERY_S = 1.0


class ScriptFollower:
    """Follows scripts.

    Args:
        store: of films.
        running: ends this work with its film, and wakes it when the film changes.
        resident_together: tells whether the models of both kinds are in memory at the same time now.
    """

    def __init__(self, store: FilmStore, running: RunningSteps, resident_together: Callable[[], bool]) -> None:
        self._store = store
        self._running = running
        self._resident_together = resident_together

    def wait_scene(self, film_id: str, index: int) -> bool:
        """Returns when the scene may be rendered: True, or False when the script has ended before it.

        A scene of a continuous film waits for the clip before it.

        Raises:
            FilmEndedError: the film has ended.
        """
        with self._running.step(film_id, calls_server=False) as run:
            overlaps: bool | None = None
            while True:
                film = self._store.film(film_id).film
                if films.has_ended(film.state):
                    raise FilmEndedError
                written = index < len(film.scenes)
                if written and film.settings.continuous and index and not _is_rendered(film.scenes[index - 1]):
                    run.wait(_LOOK_EVERY_S)
                    continue
                if film.state > pb.Film.STATE_WRITING_SCRIPT:
                    return written
                # Asked when the first words of the scene are there: only now is the language model awake for certain.
                if written and overlaps is None:
                    overlaps = self._resident_together()
                if written and overlaps:
                    return True
                run.wait(_LOOK_EVERY_S)


def _is_rendered(scene: pb.Scene) -> bool:
    return scene.state == pb.Scene.STATE_SUCCEEDED
