"""The durable workflow of a film, on DBOS: its script, its scenes on a queue as they are written, then the join.

Steps that ended are never run again; what was at work when the process was killed is run again when it starts. It does
not know what the steps do. DBOS is one per process, and so is this.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, Serializer, SetEnqueueOptions, SetWorkflowID

from halfreel_gateway.models import RenderPlan
from halfreel_gateway.production import Production, given_up
from halfreel_gateway.store import FilmStore
from halfreel_gateway.writer import Preparation

APPLICATION_NAME = "halfreel-gateway"
# Of the workflow below: DBOS resumes only jobs of the same version. Raise it when the order of the steps changes: films
# that an older version was at work on are then begun anew, and find the scenes and clips that are stored.
WORKFLOW_VERSION = "films-2"
SCENE_QUEUE = "scenes"
# How soon a free place on the queue is taken. One indexed query each time.
SCENE_POLL_S = 0.1
# Clips found damaged when they are joined are rendered again, so many times in all.
MAX_RENDER_ROUNDS = 3
# Scenes are taken by their film's time of acceptance plus so much for each scene before them: films that arrive
# together take turns, and a film that arrives later never holds up an older one for longer than this times 8.
_TURN_S = 60
# 2026-01-01: DBOS's priorities are 31 bits.
_PRIORITY_EPOCH_S = 1_767_225_600
# How soon a film is begun that was stored while the database could not store its workflow any more.
_LOOK_EVERY_S = 5.0
_AT_WORK = ("PENDING", "ENQUEUED", "DELAYED")
_RUINED = ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "CANCELLED")

_logger = logging.getLogger(__name__)


class DbosEnvironmentError(Exception):
    """The environment would make DBOS do something else than it is told here."""


class JsonSerializer(Serializer):
    """How DBOS keeps arguments and results: as JSON, so that what is read from the database is never executed.

    DBOS's own default is pickle.
    """

    def serialize(self, data: Any) -> str:
        """Any JSON value, or an exception, as text."""
        if isinstance(data, BaseException):
            data = {"error": type(data).__name__}
        return json.dumps(data)

    def deserialize(self, serialized_data: str) -> Any:
        """The JSON value; an exception comes back as a RuntimeError that names it."""
        data = json.loads(serialized_data)
        if isinstance(data, dict) and data.keys() == {"error"}:
            return RuntimeError(data["error"])
        return data

    def name(self) -> str:
        """What DBOS writes beside every value."""
        return "halfreel_json"


class Jobs:
    """Starts and resumes the workflows of films.

    Args:
        production: does the steps.
        store: of films.
        database_url: as `halfreel_gateway.database` gives it.
        executor_id: what this gateway is called; only its own workflows are resumed.
    """

    def __init__(self, production: Production, store: FilmStore, database_url: sa.URL, executor_id: str) -> None:
        _refuse_foreign_environment()
        self._production = production
        self._store = store
        self._executor_id = executor_id
        self._closing = threading.Event()
        self._looking = threading.Thread(target=self._look_on, name="films-not-begun", daemon=True)
        self._register()
        DBOS(
            config={
                "name": APPLICATION_NAME,
                "system_database_url": database_url.render_as_string(hide_password=False),
                "executor_id": executor_id,
                "application_version": WORKFLOW_VERSION,
                "serializer": JsonSerializer(),
                "enable_otlp": False,
                # Nothing here waits for its notifications; a stop waits for the sleep of who looks for them.
                "notification_listener_polling_interval_sec": SCENE_POLL_S,
                "log_level": "WARNING",
            }
        )
        # Its log lines are ours: one format, on stderr.
        dbos_logger = logging.getLogger("dbos")
        dbos_logger.handlers.clear()
        dbos_logger.propagate = True

    def launch(self, scene_concurrency: int) -> None:
        """Resumes what this gateway was at work on, and takes up what it never began.

        Args:
            scene_concurrency: scenes that this process has rendered at once.
        """
        DBOS.launch()
        DBOS.register_queue(SCENE_QUEUE, worker_concurrency=scene_concurrency, polling_interval_sec=SCENE_POLL_S)
        for film_id in self._store.active_film_ids():
            self._take_up(film_id, frozenset({self._executor_id}))
        self._looking.start()

    def take_over(self, executor_id: str) -> bool:
        """Goes on with what a gateway that is dead was at work on. May be done again.

        Returns:
            Whether all is taken over; otherwise a workflow could not be now, or is of a newer version.
        """
        DBOS._recover_pending_workflows([executor_id])
        for film_id in self._store.active_film_ids():
            self._take_up(film_id, frozenset({executor_id}))
        # DBOS only logs what it could not recover.
        left = DBOS.list_workflows(executor_id=executor_id, status="PENDING", load_input=False, load_output=False)
        return all(_is_older(workflow.app_version) for workflow in left)

    def _look_on(self) -> None:
        """Begins films that were stored, but not begun, because the database went away between."""
        while not self._closing.wait(_LOOK_EVERY_S):
            try:
                for film_id in self._store.queued_film_ids():
                    self._take_up(film_id, frozenset())
            except Exception:  # it is away; the next look finds the same films
                _logger.exception("films_not_begun")

    def _take_up(self, film_id: str, executor_ids: Collection[str]) -> None:
        """Sees to it that somebody is at work on a film; `executor_ids` are gateways that are not."""
        found = DBOS.list_workflows(workflow_id_prefix=film_id, load_input=False, load_output=False)
        if any(workflow.status in _RUINED for workflow in found):
            with contextlib.suppress(sa.exc.DBAPIError):  # it was logged; the films behind it are taken up all the same
                self._production.fail(film_id, given_up(film_id))
            return
        made_by = next((workflow for workflow in found if workflow.workflow_id == film_id), None)
        if made_by is not None and _is_older(made_by.app_version) and made_by.executor_id in executor_ids:
            _logger.info("film_of_older_version", extra={"film_id": film_id, "version": made_by.app_version})
            DBOS.delete_workflows([workflow.workflow_id for workflow in found])
            made_by = None
        if made_by is None:
            self.start(film_id)

    def start(self, film_id: str) -> None:
        """Starts the film's workflow, unless it was started before."""
        with SetWorkflowID(film_id):
            DBOS.start_workflow(self._film, film_id)

    def forget(self, film_id: str) -> None:
        """Removes what DBOS keeps of a film that has ended; what still runs of it keeps its rows until it is done."""
        found = DBOS.list_workflows(workflow_id_prefix=film_id, load_input=False, load_output=False)
        ended = [workflow.workflow_id for workflow in found if workflow.status not in _AT_WORK]
        if ended:
            DBOS.delete_workflows(ended)

    def close(self) -> None:
        """Takes no more work. The steps must have been ended before."""
        self._closing.set()
        if self._looking.is_alive():
            self._looking.join()
        DBOS.destroy(workflow_completion_timeout_sec=0)

    def _register(self) -> None:
        production = self._production

        def prepare(film_id: str) -> dict[str, Any] | None:
            preparation = production.prepare(film_id)
            return None if preparation is None else preparation.as_json()

        def write_script(film_id: str, preparation: dict[str, Any]) -> None:
            production.write_script(film_id, Preparation.from_json(preparation))

        def wait_scene(film_id: str, index: int) -> bool:
            return production.wait_scene(film_id, index)

        def render_scene(film_id: str, index: int, plan: dict[str, int]) -> None:
            production.render_scene(film_id, index, RenderPlan(**plan))

        def wait_rendered(film_id: str) -> bool:
            return production.wait_rendered(film_id)

        def join(film_id: str) -> list[int]:
            return production.join(film_id)

        def give_up_clips(film_id: str) -> None:
            production.give_up_clips(film_id)

        prepare_step = DBOS.step(name="prepare")(prepare)
        write_step = DBOS.step(name="write_script")(write_script)
        wait_scene_step = DBOS.step(name="wait_scene")(wait_scene)
        render_step = DBOS.step(name="render_scene")(render_scene)
        wait_step = DBOS.step(name="wait_rendered")(wait_rendered)
        join_step = DBOS.step(name="join")(join)
        give_up_step = DBOS.step(name="give_up_clips")(give_up_clips)

        def script(film_id: str, preparation: dict[str, Any]) -> None:
            write_step(film_id, preparation)

        def scene(film_id: str, index: int, plan: dict[str, int]) -> None:
            render_step(film_id, index, plan)

        def enqueue(film_id: str, index: int, render_round: int, preparation: dict[str, Any]) -> None:
            priority = max(1, preparation["accepted_s"] - _PRIORITY_EPOCH_S) + index * _TURN_S
            scene_id = f"{film_id}-{index}-{render_round}"
            with SetWorkflowID(scene_id), SetEnqueueOptions(priority=priority):
                DBOS.enqueue_workflow(SCENE_QUEUE, scene_workflow, film_id, index, preparation["plan"])

        def film(film_id: str) -> None:
            preparation = prepare_step(film_id)
            if preparation is None:
                return
            with SetWorkflowID(f"{film_id}-script"):
                DBOS.start_workflow(script_workflow, film_id, preparation)
            scene_count = 0
            while wait_scene_step(film_id, scene_count):
                enqueue(film_id, scene_count, 0, preparation)
                scene_count += 1
            for render_round in range(1, MAX_RENDER_ROUNDS + 1):
                if not wait_step(film_id):
                    return
                damaged = join_step(film_id)
                if not damaged:
                    return
                if render_round < MAX_RENDER_ROUNDS:
                    for index in damaged:
                        enqueue(film_id, index, render_round, preparation)
            give_up_step(film_id)

        script_workflow = DBOS.workflow(name="script")(script)
        scene_workflow = DBOS.workflow(name="scene")(scene)
        self._film = DBOS.workflow(name="film")(film)


def _is_older(version: str | None) -> bool:
    """Whether a workflow is of a version before this one; a newer one is left to the gateway that knows it."""
    name, _, number = (version or "").rpartition("-")
    own_name, _, own_number = WORKFLOW_VERSION.rpartition("-")
    return name == own_name and number.isdecimal() and int(number) < int(own_number)


def _refuse_foreign_environment() -> None:
    """DBOS takes orders from the environment too, among them to report to its maker's cloud."""
    for name in os.environ:
        if name.startswith("DBOS_"):
            raise DbosEnvironmentError(f"{name} is set in the environment; unset it: the gateway's own settings decide")
