"""The life of the process: an error of serving is none of starting, spans are sent, and all stops in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOS
from postgresql_cluster import Cluster
from trace_collector import collecting

from halfreel_gateway import __main__ as gateway
from halfreel_gateway import folder_lock
from halfreel_gateway.database import Database
from halfreel_gateway.heartbeat import Heartbeat
from halfreel_gateway.hub import Hub
from halfreel_gateway.jobs import Jobs
from halfreel_gateway.memory import ServersMemory
from halfreel_gateway.running import RunningSteps
from halfreel_gateway.settings import GatewaySettings
from halfreel_runtime import tracing
from halfreel_runtime.server import Server

Serve = Callable[[], Coroutine[Any, Any, int]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `main` with this for all that it starts, and with these settings."""

    def run(start: Callable[[contextlib.ExitStack], Serve], *arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["halfreel-gateway", *arguments])
        monkeypatch.setattr(gateway, "configure_logs", lambda *_: None)
        monkeypatch.setattr(gateway, "_start", lambda settings, to_stop: start(to_stop))
        gateway.main()

    return run


def test_only_an_error_of_starting_is_told_as_one(run: Callable[..., None]) -> None:
    stopped: list[str] = []

    def start_badly(to_stop: contextlib.ExitStack) -> Serve:
        to_stop.callback(stopped.append, "started in part")
        raise OSError("no such folder")

    with pytest.raises(SystemExit) as refused:
        run(start_badly)
    assert refused.value.code == gateway.EXIT_USAGE

    def start(to_stop: contextlib.ExitStack) -> Serve:
        to_stop.callback(stopped.append, "served")

        async def serve() -> int:
            raise OSError("too many open files")

        return serve

    with pytest.raises(OSError, match="too many open files"):
        run(start)
    assert stopped == ["started in part", "served"]


def test_its_last_spans_are_sent(run: Callable[..., None]) -> None:
    def start(to_stop: contextlib.ExitStack) -> Serve:
        async def serve() -> int:
            with tracing.span("served"):
                return 0

        def stop() -> None:
            with tracing.span("stopped"):
                pass

        to_stop.callback(stop)
        return serve

    with collecting() as collector:
        with pytest.raises(SystemExit) as ended:
            run(start, "--trace-endpoint", collector.endpoint)
        assert [len(collector.named(name)) for name in ("served", "stopped")] == [1, 1]
    assert ended.value.code == 0


@pytest.fixture
def _dbos_of_its_own() -> Iterator[None]:
    yield
    DBOS.destroy(destroy_registry=True)


@pytest.mark.postgresql
@pytest.mark.usefixtures("_dbos_of_its_own")
def test_others_hear_of_a_stop_when_nothing_is_begun_any_more(
    tmp_path: Path, postgresql_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def note(kind: type, name: str, what: str) -> None:
        """Notes that it has been done; it is done as always."""
        done = getattr(kind, name)

        def noted(*arguments: object) -> object:
            result = done(*arguments)
            order.append(what)
            return result

        async def noted_too(*arguments: object) -> None:
            await done(*arguments)
            order.append(what)

        monkeypatch.setattr(kind, name, noted_too if asyncio.iscoroutinefunction(done) else noted)

    async def told_to_stop(_: Server) -> int:
        order.append("no more calls")
        return 0

    monkeypatch.setattr(Server, "run", told_to_stop)
    note(RunningSteps, "stop", "steps have ended")
    note(Hub, "stop", "watchers have ended")
    note(ServersMemory, "close", "questions to servers have ended")
    note(Heartbeat, "stop_looking", "nothing is taken over")
    note(Jobs, "close", "nothing is begun")
    note(Database, "close", "the database is closed")
    beat = Heartbeat._beat

    def beat_noted(self: Heartbeat, age_s: float) -> None:
        beat(self, age_s)
        if age_s:
            order.append("others hear of it")

    monkeypatch.setattr(Heartbeat, "_beat", beat_noted)
    settings = GatewaySettings(
        data_dir=tmp_path,
        database_url=postgresql_cluster.new_database(),
        llm_addresses=("127.0.0.1:1",),
        video_addresses=("127.0.0.1:1",),
    )
    with contextlib.ExitStack() as to_stop:
        serve = gateway._start(settings, to_stop)
        assert asyncio.run(serve()) == 0
        in_the_loop = order.copy()
        order.clear()
        assert folder_lock.is_held(tmp_path, settings.executor_id)
    assert in_the_loop == [
        "no more calls",
        "steps have ended",  # while there is a loop for what they ask of it
        "watchers have ended",
        "questions to servers have ended",
    ]
    assert list(dict.fromkeys(order)) == [
        "steps have ended",
        "nothing is taken over",
        "nothing is begun",
        "others hear of it",
        "the database is closed",
    ]
    assert not folder_lock.is_held(tmp_path, settings.executor_id)
