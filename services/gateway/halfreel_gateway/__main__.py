"""The gateway, joined: settings, database, files, model servers, production, gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence

import sqlalchemy as sa

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc
from halfreel_gateway import films, folder_lock, migrations
from halfreel_gateway.announcer import Announcer
from halfreel_gateway.artifacts import Artifacts
from halfreel_gateway.channels import balanced_channel
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.failures import is_database_away
from halfreel_gateway.film_traces import FilmTraces
from halfreel_gateway.follower import ScriptFollower
from halfreel_gateway.heartbeat import Heartbeat
from halfreel_gateway.hub import Hub
from halfreel_gateway.jobs import DbosEnvironmentError, Jobs
from halfreel_gateway.joiner import FilmJoiner
from halfreel_gateway.memory import ServersMemory
from halfreel_gateway.metrics import DiskCollector, FilmMetrics, FilmsCollector, SceneMetrics
from halfreel_gateway.model_access import model_access
from halfreel_gateway.models import Models
from halfreel_gateway.production import Production
from halfreel_gateway.reception import Reception
from halfreel_gateway.renderer import SceneRenderer
from halfreel_gateway.running import RunningSteps
from halfreel_gateway.service import GatewayService
from halfreel_gateway.settings import LLM_SERVICE, SERVICE, VIDEO_SERVICE, GatewaySettings
from halfreel_gateway.store import FilmStore
from halfreel_gateway.writer import ScriptWriter
from halfreel_runtime.logs import configure_logs
from halfreel_runtime.metrics import ServerMetrics
from halfreel_runtime.server import Server
from halfreel_runtime.settings import load_settings
from halfreel_runtime.tracing import start_tracing, stop_tracing

GATEWAY_SERVICE = "halfreel.gateway.v1.GatewayService"
EXIT_USAGE = 2
EXIT_DATABASE_AWAY = 69  # EX_UNAVAILABLE of sysexits.h: a supervisor may try again

# Named by hand: run with -m, this module's own name is __main__.
_logger = logging.getLogger("halfreel_gateway")


def main() -> None:
    """Runs the gateway until it is told to stop."""
    settings = load_settings(GatewaySettings, SERVICE, sys.argv[1:])
    configure_logs(settings.log_level, SERVICE)
    start_tracing(settings.trace_endpoint, SERVICE)
    with contextlib.ExitStack() as to_stop:
        to_stop.callback(stop_tracing)
        try:
            serve = _start(settings, to_stop)
        except (OSError, ValueError, DbosEnvironmentError) as error:
            code = _not_started(str(error))
        except sa.exc.SQLAlchemyError as error:
            code = _not_started(f"the database can't be opened: {getattr(error, 'orig', None) or error}")
            if settings.database_url and is_database_away(error):
                code = EXIT_DATABASE_AWAY
        else:
            code = asyncio.run(serve())
    sys.exit(code)


def _start(settings: GatewaySettings, to_stop: contextlib.ExitStack) -> Callable[[], Coroutine[None, None, int]]:
    """Starts all but the server, which the result runs; what is to be stopped is put on `to_stop`, the first last."""
    data_dir = settings.data_dir.expanduser()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    to_stop.callback(os.close, folder_lock.take(data_dir, settings.executor_id))

    metrics = ServerMetrics(SERVICE, None, None)
    film_metrics = FilmMetrics(metrics.registry)
    scene_metrics = SceneMetrics(metrics.registry)
    metrics.registry.register(DiskCollector(data_dir, settings.min_free_disk_bytes))

    traces = FilmTraces()
    hub = Hub()
    running = RunningSteps(settings.stall_s)

    def publish(film_id: str, events: Sequence[pb.WatchFilmResponse]) -> None:
        for event in events:
            if event.HasField("state_changed"):
                state = pb.Film.State.Name(event.state_changed.state).removeprefix("STATE_").lower()
                _logger.info("film", extra={"film_id": film_id, "state": state})
        film_metrics.take(film_id, events)
        traces.take(film_id, events)
        hub.publish(film_id, events)
        running.film_changed(film_id, ended=any(films.ends_film(event) for event in events))

    url = database_url(settings.database_url, data_dir)
    database = Database(url)
    to_stop.callback(database.close)
    with database.writing() as connection:
        migrations.migrate(connection)
    store = FilmStore(database, publish, settings.max_active_film_count)
    artifacts = Artifacts(data_dir, settings.executor_id)
    artifacts.sweep(store.uses_clip, store.uses_film)

    metrics.registry.register(FilmsCollector(store.counts, store.scene_counts))

    access = model_access(settings)
    # Each call takes the next server's turn. Questions have turns of their own: with one before each script, all would
    # be written by the same of two servers.
    llm, asked_llm = (balanced_channel(settings.llm_addresses, LLM_SERVICE, access) for _ in range(2))
    video, asked_video = (balanced_channel(settings.video_addresses, VIDEO_SERVICE, access) for _ in range(2))
    for channel in (llm, asked_llm, video, asked_video):
        to_stop.callback(channel.close)
    models = Models(asked_llm, asked_video)
    announcer = Announcer(hub, store, running)
    memory = ServersMemory(settings.llm_addresses, settings.video_addresses, access)
    writer = ScriptWriter(store, running, announcer, models, llm)
    follower = ScriptFollower(store, running, memory.resident_together)
    renderer = SceneRenderer(store, running, announcer, artifacts, video, scene_metrics.count)
    joiner = FilmJoiner(store, running, artifacts)
    production = Production(store, running, artifacts, writer, follower, renderer, joiner, traces)
    jobs = Jobs(production, store, url, settings.executor_id)

    reception = Reception(store, artifacts, models, jobs.start, jobs.forget, settings.min_free_disk_bytes)
    server = Server(settings, service=SERVICE, metrics=metrics)
    servicer = GatewayService(reception, hub, memory)
    server.add(
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server,
        servicer,
        GATEWAY_SERVICE,
        watch_methods=("WatchFilm",),
    )

    async def serve() -> int:
        hub.start(store)
        memory.start()
        try:
            return await server.run()
        finally:
            # The steps end while there is still a loop for what they ask of it.
            await asyncio.to_thread(running.stop)
            await hub.stop()
            await memory.close()

    def take_over(executor_id: str) -> bool:
        artifacts.sweep_temporary(executor_id)
        return jobs.take_over(executor_id)

    # They stop from the last to the first: steps end; nothing is begun or taken over any more; then others hear of it.
    if database.is_shared:
        heartbeat = Heartbeat(database, settings.executor_id, take_over)
        heartbeat.start()
        to_stop.callback(heartbeat.stop)
    to_stop.callback(jobs.close)
    if database.is_shared:
        to_stop.callback(heartbeat.stop_looking)
    running.start(store.positions)
    to_stop.callback(running.stop)
    jobs.launch(settings.scene_concurrency or asyncio.run(memory.video_server_count()))
    return serve


def _not_started(reason: str) -> int:
    _logger.error("not_started", extra={"reason": reason})
    return EXIT_USAGE


if __name__ == "__main__":
    main()
