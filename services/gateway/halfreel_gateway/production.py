"""What each durable step of a film's production does, whatever goes wrong in it.

Every step may be killed at any moment and run again, and ends in one of three ways: with its result, with the film
ended (failed, cancelled, deleted), or by the gateway's stop. It does not know the workflow that runs the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import grpc

from halfreel_gateway.artifacts import Artifacts
from halfreel_gateway.failures import (
    FileVanishedError,
    FilmEndedError,
    FilmFailedError,
    disk_full_failure,
    is_database_away,
    is_disk_full,
)
from halfreel_gateway.film_traces import FilmTraces
from halfreel_gateway.follower import ScriptFollower
from halfreel_gateway.joiner import FilmJoiner
from halfreel_gateway.models import RenderPlan
from halfreel_gateway.renderer import SceneRenderer
from halfreel_gateway.running import RunningSteps
from halfreel_gateway.store import FilmStore
from halfreel_gateway.writer import Preparation, ScriptWriter
from halfreel_runtime.errors import NotFound

T = TypeVar("T")

# A database that is away, or has no room to note a failure, is tried again in this time; so is a file that vanished.
_RETRY_WAIT_S = 2.0

_logger = logging.getLogger(__name__)


class Production:
    """The steps of a film.

    Args:
        store: of films.
        running: ends steps.
        artifacts: has the disk.
        writer: writes scripts.
        follower: tells which scenes are written.
        renderer: renders scenes.
        joiner: joins films.
        traces: of films.
    """

    def __init__(
        self,
        store: FilmStore,
        running: RunningSteps,
        artifacts: Artifacts,
        writer: ScriptWriter,
        follower: ScriptFollower,
        renderer: SceneRenderer,
        joiner: FilmJoiner,
        traces: FilmTraces,
    ) -> None:
        self._store = store
        self._running = running
        self._artifacts = artifacts
        self._writer = writer
        self._follower = follower
        self._renderer = renderer
        self._joiner = joiner
        self._traces = traces

    def prepare(self, film_id: str) -> Preparation | None:
        """Begins the film; None when it has ended."""
        return self._carry_out(film_id, None, lambda: self._writer.prepare(film_id))

    def write_script(self, film_id: str, preparation: Preparation) -> None:
        """Stores the film's scenes, or ends the film."""
        self._carry_out(film_id, None, lambda: self._writer.write(film_id, preparation), "write_script")

    def wait_scene(self, film_id: str, index: int) -> bool:
        """Waits until the scene may be rendered; False when there is no such scene, or the film has ended."""
        return self._carry_out(film_id, None, lambda: self._follower.wait_scene(film_id, index)) or False

    def render_scene(self, film_id: str, index: int, plan: RenderPlan) -> None:
        """Stores the scene's clip, or ends the film."""
        self._carry_out(film_id, index, lambda: self._renderer.render(film_id, index, plan), "render_scene")

    def wait_rendered(self, film_id: str) -> bool:
        """Waits for all clips; False when the film has ended."""

        def waited() -> bool:
            self._joiner.wait_rendered(film_id)
            return True

        return self._carry_out(film_id, None, waited) or False

    def join(self, film_id: str) -> list[int]:
        """Publishes the film; the scenes that must be rendered again first, none when it is done or has ended."""
        return self._carry_out(film_id, None, lambda: self._joiner.join(film_id), "join_clips") or []

    def give_up_clips(self, film_id: str) -> None:
        """Ends a film whose clips were damaged every time they were rendered."""
        self.fail(
            film_id,
            FilmFailedError(
                grpc.StatusCode.DATA_LOSS,
                "CLIP_CORRUPT",
                "Clips of this film are damaged on the gateway's disk each time they are made; check the disk.",
            ),
        )

    def fail(self, film_id: str, failure: FilmFailedError, scene: int | None = None) -> None:
        """Ends the film as failed, unless it has ended; keeps trying while the database is away or its disk is full.

        Raises:
            sqlalchemy.exc.DBAPIError: the database refuses to store that, and always will.
        """
        while True:
            try:
                with self._store.change(film_id) as change:
                    change.fail(failure.error, scene)
            except FilmEndedError:
                return
            except Exception as error:
                _logger.exception("failure_not_stored", extra={"film_id": film_id})
                if not is_database_away(error) and not is_disk_full(error):
                    raise
                self._rest(film_id)
            else:
                _logger.warning(
                    "film_failed",
                    extra={"film_id": film_id, "reason": failure.error.reason, "why": failure.error.message},
                )
                return

    def _carry_out(
        self, film_id: str, scene: int | None, work: Callable[[], T], span_name: str | None = None
    ) -> T | None:
        """The work's result; None when the film has ended, by this step or otherwise."""
        with self._traces.step(film_id, span_name, scene):
            return self._carried_out(film_id, scene, work)

    def _carried_out(self, film_id: str, scene: int | None, work: Callable[[], T]) -> T | None:
        while True:
            try:
                return work()
            except FilmEndedError:
                return None
            except FilmFailedError as error:
                failure = error
            except NotFound as error:  # FILM_NOT_FOUND: it was deleted
                _logger.info("film_gone", extra={"film_id": film_id, "reason": error.reason})
                return None
            except FileVanishedError:
                _logger.warning("file_vanished", extra={"film_id": film_id})
                self._rest(film_id)
                continue
            except Exception as error:
                if is_disk_full(error):
                    failure = disk_full_failure(-1, self._artifacts.free_bytes())
                elif is_database_away(error):
                    _logger.exception("database_failed", extra={"film_id": film_id})
                    self._rest(film_id)
                    continue
                else:
                    _logger.exception("step_failed", extra={"film_id": film_id})
                    failure = _internal(film_id)
            self.fail(film_id, failure, scene)
            return None

    def _rest(self, film_id: str) -> None:
        """Waits before something is tried again; the gateway's stop ends the wait."""
        with self._running.step(film_id, calls_server=False) as run:
            try:
                run.sleep(_RETRY_WAIT_S)
            except FilmEndedError:
                return


def _internal(film_id: str) -> FilmFailedError:
    return FilmFailedError(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"Internal error; the gateway's log has it under film {film_id}. Make the film again.",
    )


def given_up(film_id: str) -> FilmFailedError:
    """Why a film is given up whose production ended the gateway time after time."""
    return FilmFailedError(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"The production of film {film_id} ended the gateway time after time and is given up; see its log.",
    )
