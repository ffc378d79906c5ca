"""A gRPC server of Halfreel: services, health, reflection, metrics, and an orderly start and end.

It does not know what its services do; their engines' states drive their health.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from halfreel_runtime.access import Access
from halfreel_runtime.boundary import MAX_CALL_COUNT, Boundary
from halfreel_runtime.engine import Engine, EngineState
from halfreel_runtime.exposure import ListenError, Protection, protection_for
from halfreel_runtime.metrics import ServerMetrics
from halfreel_runtime.metrics_http import MetricsEndpoint
from halfreel_runtime.server_settings import ServerSettings
from halfreel_runtime.tracing import stop_tracing

_logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_ENGINE_DEAD = 70
# Replies that tell of a dead engine get this long to leave.
_LAST_WORDS_S = 2.0
# The largest event is a video chunk of 1 MiB.
_MAX_SEND_BYTES = 4 * 2**20
# Above what the boundary takes, so that a client with too many calls is refused at once instead of left to wait.
_MAX_STREAMS_PER_CONNECTION = 2 * MAX_CALL_COUNT
# A generation may be silent for an hour: a client's pings are no reason to hang up on it, and our own notice within
# 20 s that a client vanished. The keys are gRPC core's; a misspelt one would be ignored. ping_timeout_ms is what counts
# for a connection that still takes bytes: without it a vanished client was noticed after 70 s (grpcio 1.85).
_CHANNEL_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.http2.ping_timeout_ms", 8_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_send_message_length", _MAX_SEND_BYTES),
    ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
    # A client asks DNS again when it connects again, and only so finds servers that have been added; running streams
    # keep the old connection for as long as they need it.
    ("grpc.max_connection_age_ms", 60_000),
)


@dataclass(frozen=True)
class _Service:
    register: Callable[[Any, grpc.aio.Server], None]
    servicer: Any
    full_name: str
    engine: Engine[Any] | None


class Server:
    """Serves until it is told to stop, or its engine dies.

    Args:
        settings: where to listen, and how long to wait for the end.
        service: llm, video or gateway.
        metrics: what /metrics shows.
    """

    def __init__(self, settings: ServerSettings, *, service: str, metrics: ServerMetrics | None = None) -> None:
        self._settings = settings
        self._service = service
        self._metrics = metrics if metrics is not None else ServerMetrics(service, None, None)
        self._boundary = Boundary(self._metrics.calls)
        self._services: list[_Service] = []
        self._health = health_aio.HealthServicer()
        self._stop = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.metrics_port = 0

    def add(
        self,
        register: Callable[[Any, Any], None],
        servicer: Any,
        full_name: str,
        engine: Engine[Any] | None = None,
        *,
        watch_methods: Collection[str] = (),
    ) -> None:
        """Adds a service; call before the server starts.

        Args:
            register: the generated add_XServicer_to_server.
            servicer: its methods raise HalfreelErrors and never touch the context for errors.
            full_name: such as "halfreel.llm.v1.LlmService".
            engine: whose state is the service's health; None for one that always serves.
            watch_methods: methods whose streams never end by themselves; when the server stops they are ended at once.
        """
        self._services.append(_Service(register, servicer, full_name, engine))
        self._boundary.add_service(full_name, watch_methods)
        for method in descriptor_pool.Default().FindServiceByName(full_name).methods:
            self._metrics.calls.add_method(f"/{full_name}/{method.name}")

    @property
    def _engines(self) -> list[Engine[Any]]:
        return list({id(each.engine): each.engine for each in self._services if each.engine is not None}.values())

    def main(self) -> NoReturn:
        """Runs the server, and ends the process even where a thread hangs on its device."""
        code = asyncio.run(self._run_to_the_end())
        closed = [engine.close() for engine in self._engines]
        stop_tracing()
        logging.shutdown()
        if not all(closed):
            os._exit(code)  # an interpreter that shuts down under a running CUDA call may crash or hang
        sys.exit(code)

    async def _run_to_the_end(self) -> int:
        code = await self.run()
        if self._dead:  # its thread may hang, and so may others that wait for it
            stop_tracing()
            logging.shutdown()
            os._exit(code)
        return code

    async def run(self) -> int:
        """Starts, serves until SIGTERM, SIGINT or the engine's death, drains and stops.

        Returns:
            The process's exit code: 0, 2 where it can't listen or load as it was told, 70 where the engine died.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        try:
            await self.start()
        except ListenError as error:
            _logger.error("not_listening", extra={"reason": str(error)})
            return EXIT_USAGE
        await self._stop.wait()
        dead = self._dead
        await self.stop(_LAST_WORDS_S if dead else self._settings.grace_s)
        if any(engine.misconfigured for engine in self._engines):
            return EXIT_USAGE
        return EXIT_ENGINE_DEAD if dead else EXIT_OK

    async def start(self) -> None:
        """Listens, and tells so.

        Raises:
            ListenError: the port is taken, the host may not be listened on, or a file of its protection can't be used.
        """
        # A thread that computes gives way to the loop after this long, instead of after Python's 5 ms.
        sys.setswitchinterval(0.001)
        settings = self._settings
        protection = protection_for(settings)
        if (tls := protection.tls) is not None:
            self._metrics.show_certificate(lambda: tls.expires)
        loop = asyncio.get_running_loop()
        self._grpc = grpc.aio.server(
            interceptors=[Access(protection.tokens, self._metrics.calls), self._boundary],
            options=[*_CHANNEL_OPTIONS, ("grpc.max_receive_message_length", settings.max_receive_bytes)],
        )
        for each in self._services:
            each.register(each.servicer, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if protection.tokens is None:
            names = [*(each.full_name for each in self._services), HEALTH_SERVICE, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._grpc)
        self.port = self._listen(protection)
        try:
            self._endpoint = self._open_metrics(loop, protection)
        except ListenError:
            await self._grpc.stop(0)
            raise
        self.metrics_port = self._endpoint.port
        for each in self._services:
            if each.engine is None:
                await self._health.set(each.full_name, health_pb2.HealthCheckResponse.SERVING)
            else:
                each.engine.on_state(functools.partial(self._crossed, loop, each.full_name))
        await self._grpc.start()
        protected = {"tls": protection.tls is not None, "tokens": protection.tokens is not None}
        _logger.info("listening", extra={"port": self.port, "metrics_port": self.metrics_port, **protected})
        self._write_port_file()

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, lets those at hand finish for `grace_s` seconds, and ends."""
        self._stopping = True
        _logger.info("stopping", extra={"calls": self._boundary.call_count, "grace_s": grace_s})
        await self._health.enter_graceful_shutdown()
        closing = asyncio.create_task(self._grpc.stop(grace_s + _LAST_WORDS_S))
        self._boundary.end_watches()
        await asyncio.gather(*(engine.drain(grace_s) for engine in self._engines), self._calls_done(grace_s))
        self._boundary.end_calls()
        await self._calls_done(_LAST_WORDS_S)
        await self._grpc.stop(0)  # what is left are streams of health and reflection
        await closing
        await asyncio.to_thread(self._endpoint.close)
        if self._settings.port_file is not None:
            self._settings.port_file.unlink(missing_ok=True)
        _logger.info("stopped")

    @property
    def _dead(self) -> bool:
        return any(engine.state is EngineState.DEAD for engine in self._engines)

    @property
    def _ready(self) -> bool:
        return not self._stopping and all(engine.state is EngineState.SERVING for engine in self._engines)

    def _told_to_stop(self) -> None:
        if self._stop.is_set():  # told twice: the running requests get no more time
            self._boundary.end_calls()
        self._stop.set()

    async def _calls_done(self, grace_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._boundary.calls_done(), grace_s)

    def _crossed(self, loop: asyncio.AbstractEventLoop, full_name: str, state: EngineState) -> None:
        """An engine's state has changed, in whichever thread; the loop hears of it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._heard, full_name, state)

    def _heard(self, full_name: str, state: EngineState) -> None:
        serving = health_pb2.HealthCheckResponse
        task = asyncio.ensure_future(
            self._health.set(full_name, serving.SERVING if state is EngineState.SERVING else serving.NOT_SERVING)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        _logger.info("engine_state", extra={"grpc_service": full_name, "state": state.value})
        if state is EngineState.DEAD:
            self._stop.set()

    def _listen(self, protection: Protection) -> int:
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            # Asked by a socket of our own first: gRPC's own refusal comes with pages of core's log.
            family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((settings.host, settings.port))
            if protection.tls is None:
                return self._grpc.add_insecure_port(f"{host}:{settings.port}")
            return self._grpc.add_secure_port(f"{host}:{settings.port}", protection.tls.grpc_credentials())
        except (OSError, RuntimeError) as error:
            raise ListenError(self._refused("port", settings.port, error)) from None

    def _open_metrics(self, loop: asyncio.AbstractEventLoop, protection: Protection) -> MetricsEndpoint:
        settings = self._settings
        try:
            return MetricsEndpoint(
                settings.host,
                settings.metrics_port,
                self._metrics.registry,
                live=lambda: not self._dead and _answers(loop),
                ready=lambda: self._ready and _answers(loop),
                tls=protection.tls,
                tokens=protection.tokens,
            )
        except OSError as error:
            raise ListenError(self._refused("metrics_port", settings.metrics_port, error)) from None

    def _refused(self, setting: str, port: int, error: Exception) -> str:
        why = error.strerror if isinstance(error, OSError) else str(error)
        name = f"HALFREEL_{self._service.upper()}_{setting.upper()}"
        return f"{setting} {port} of {self._settings.host} can't be listened on ({why}); set {name} to another"

    def _write_port_file(self) -> None:
        path = self._settings.port_file
        if path is None:
            return
        text = json.dumps({"port": self.port, "metrics_port": self.metrics_port, "pid": os.getpid()})
        half_written = path.with_name(f".{path.name}.{os.getpid()}")
        half_written.write_text(text, encoding="utf-8")
        half_written.replace(path)


def _answers(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop still turns, asked from another thread."""

    async def nothing() -> None:
        return None

    try:
        asyncio.run_coroutine_threadsafe(nothing(), loop).result(timeout=2.0)
    except (TimeoutError, RuntimeError):
        return False
    return True
