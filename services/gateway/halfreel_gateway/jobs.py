"""The durable workflow of a film, on DBOS: script, then its scenes on a queue, then the join.

Steps that ended are never run again; what was at work when the process was killed is run again when it starts. It does
not know what the steps do. DBOS is one per process, and so is this.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, Serializer, SetEnqueueOptions, SetWorkflowID

from halfreel_gateway.models import RenderPlan
from halfreel_gateway.production import Production, given_up
from halfreel_gateway.store import FilmStore

APPLICATION_NAME = "halfreel-gateway"
# Of the workflow below: DBOS resumes only jobs of the same version. Raise it when the order of the steps changes, and
# let the films in the making end before; a new release of the gateway alone must not orphan them.
WORKFLOW_VERSION = "films-1"
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
_AT_WORK = ("PENDING", "ENQUEUED", "DELAYED")
_RUINED = ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "CANCELLED")


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
        self._register()
        DBOS(
            config={
                "name": APPLICATION_NAME,
                "system_database_url": database_url.render_as_string(hide_password=False),
                "executor_id": executor_id,
                "application_version": WORKFLOW_VERSION,
                "serializer": JsonSerializer(),
                "enable_otlp": False,
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
            if DBOS.list_workflows(workflow_id_prefix=film_id, status=list(_RUINED), limit=1):
                self._production.fail(film_id, given_up(film_id))
            elif DBOS.get_workflow_status(film_id) is None:
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
        DBOS.destroy(workflow_completion_timeout_sec=0)

    def _register(self) -> None:
        production = self._production

        def write_script(film_id: str) -> dict[str, Any] | None:
            written = production.write_script(film_id)
            return None if written is None else written.as_json()

        def render_scene(film_id: str, index: int, plan: dict[str, int]) -> None:
            production.render_scene(film_id, index, RenderPlan(**plan))

        def wait_rendered(film_id: str) -> bool:
            return production.wait_rendered(film_id)

        def join(film_id: str) -> list[int]:
            return production.join(film_id)

        def give_up_clips(film_id: str) -> None:
            production.give_up_clips(film_id)

        write_step = DBOS.step(name="write_script")(write_script)
        render_step = DBOS.step(name="render_scene")(render_scene)
        wait_step = DBOS.step(name="wait_rendered")(wait_rendered)
        join_step = DBOS.step(name="join")(join)
        give_up_step = DBOS.step(name="give_up_clips")(give_up_clips)

        def scene(film_id: str, index: int, plan: dict[str, int]) -> None:
            render_step(film_id, index, plan)

        def film(film_id: str) -> None:
            written = write_step(film_id)
            if written is None:
                return
            priority = max(1, written["accepted_s"] - _PRIORITY_EPOCH_S)
            rendered = list(range(written["scene_count"]))
            for render_round in range(MAX_RENDER_ROUNDS):
                for index in rendered:
                    options = SetEnqueueOptions(priority=priority + index * _TURN_S)
                    with SetWorkflowID(f"{film_id}-{index}-{render_round}"), options:
                        DBOS.enqueue_workflow(SCENE_QUEUE, scene_workflow, film_id, index, written["plan"])
                if not wait_step(film_id):
                    return
                rendered = join_step(film_id)
                if not rendered:
                    return
            give_up_step(film_id)

        scene_workflow = DBOS.workflow(name="scene")(scene)
        self._film = DBOS.workflow(name="film")(film)


def _refuse_foreign_environment() -> None:
    """DBOS takes orders from the environment too, among them to report to its maker's cloud."""
    for name in os.environ:
        if name.startswith("DBOS_"):
            raise DbosEnvironmentError(f"{name} is set in the environment; unset it: the gateway's own settings decide")
