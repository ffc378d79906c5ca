"""Makes a film of its clips and publishes it.

It does not know workflows: it may be killed and run again at any moment. A film is published by a rename, so that
nobody ever sees a part of one.
"""

from __future__ import annotations

import hashlib
import time

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import films
from halfreel_gateway.artifacts import FILMS, Artifacts
from halfreel_gateway.clip import VideoFacts
from halfreel_gateway.failures import FilmEndedError
from halfreel_gateway.join import DamagedPartError, Part, join
from halfreel_gateway.running import RunningSteps
from halfreel_gateway.store import FilmStore

# The joined file has headers of its own, and captions.
_ROOM_FACTOR = 1.1
# The steps of this process are woken at once; this is for scenes rendered by another gateway.
_LOOK_EVERY_S = 1.0


class FilmJoiner:
    """Joins films.

    Args:
        store: of films.
        running: ends this work with its film.
        artifacts: has the clips, and keeps the film.
    """

    def __init__(self, store: FilmStore, running: RunningSteps, artifacts: Artifacts) -> None:
        self._store = store
        self._running = running
        self._artifacts = artifacts

    def wait_rendered(self, film_id: str) -> None:
        """Returns when all scenes have their clips.

        Raises:
            FilmEndedError: the film has ended before.
        """
        with self._running.step(film_id, calls_server=False) as run:
            while True:
                film = self._store.film(film_id).film
                if films.has_ended(film.state):
                    raise FilmEndedError
                if all(scene.state == pb.Scene.STATE_SUCCEEDED for scene in film.scenes):
                    return
                run.wait(_LOOK_EVERY_S)

    def join(self, film_id: str) -> list[int]:
        """Publishes the film.

        Returns:
            Scenes whose clips are damaged, from 0, now to be rendered again; none when the film is published.

        Raises:
            FilmFailedError: the disk is full.
            FilmEndedError: the film has ended.
        """
        with self._running.step(film_id, calls_server=False) as run:
            film = self._enter(film_id)
            began_s = time.monotonic()
            clips = [(self._artifacts.clip(scene.clip.sha256), scene) for scene in film.scenes]
            damaged = [
                scene.index
                for path, scene in clips
                if not self._artifacts.is_intact(path, scene.clip.sha256, scene.clip.size_bytes)
            ]
            if damaged:
                return self._render_again(film_id, damaged)
            self._artifacts.require_room(round(_ROOM_FACTOR * sum(scene.clip.size_bytes for scene in film.scenes)))
            with self._artifacts.temporary(FILMS) as path:
                try:
                    facts = join([Part(clip, scene.narration) for clip, scene in clips], film.title, path)
                except DamagedPartError as error:
                    return self._render_again(film_id, [error.index])
                run.check()
                with path.open("rb") as file:
                    video = _artifact(facts, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
                self._artifacts.publish(path, self._artifacts.film(film_id))
            self._succeed(film_id, video, time.monotonic() - began_s)
            return []

    def _enter(self, film_id: str) -> pb.Film:
        film = self._store.film(film_id).film
        if films.has_ended(film.state):
            self._remove_unless_succeeded(film_id)  # left by a run that was killed between the rename and its end
            raise FilmEndedError
        if film.state == pb.Film.STATE_RENDERING:
            with self._store.change(film_id) as change:
                begun = min(record.start_time_us for record in change.scenes)
                ended = max(record.end_time_us for record in change.scenes)
                change.film.render_duration.CopyFrom(films.duration((ended - begun) / 1e6))
                change.enter(pb.Film.STATE_JOINING)
        return film

    def _succeed(self, film_id: str, video: pb.Artifact, seconds: float) -> None:
        try:
            with self._store.change(film_id) as change:
                change.film.join_duration.CopyFrom(films.duration(seconds))
                change.succeed(video)
        except FilmEndedError:
            self._remove_unless_succeeded(film_id)
            raise

    def _remove_unless_succeeded(self, film_id: str) -> None:
        """Another gateway may have taken this one for dead and published the film: then the file is the film's."""
        position = self._store.positions([film_id]).get(film_id)
        if position is None or position.state != pb.Film.STATE_SUCCEEDED:
            self._artifacts.remove_film(film_id)

    def _render_again(self, film_id: str, damaged: list[int]) -> list[int]:
        with self._store.change(film_id) as change:
            for index in damaged:
                scene = change.scenes[index].scene
                scene.state = pb.Scene.STATE_QUEUED
                for field in ("clip", "stages", "phase_peaks", "rungs", "trades", "last_frame"):
                    scene.ClearField(field)
                change.tell_scene(index)
        return damaged


def _artifact(facts: VideoFacts, sha256: str, size_bytes: int) -> pb.Artifact:
    return pb.Artifact(
        size_bytes=size_bytes,
        sha256=sha256,
        width_px=facts.width_px,
        height_px=facts.height_px,
        frame_count=facts.frame_count,
        fps=round(facts.rate),
        duration=films.duration(float(facts.duration_s)),
    )
