"""`halfreel up` and `halfreel down`: the three servers on this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from halfreel_client.command.endpoint import credentials_of
from halfreel_client.command.exits import CommandError, ExitCode
from halfreel_client.command.interruption import Interruption
from halfreel_client.command.local_servers import check_installed
from halfreel_client.command.options import DataDir, data_folder_of
from halfreel_client.display.live_view import server_lines
from halfreel_client.display.plain_view import PlainView
from halfreel_client.gpus import find_gpus
from halfreel_client.supervisor.running import AlreadyUpError, Running, held, is_locked
from halfreel_client.supervisor.stack import Ports, specs, taken_ports
from halfreel_client.supervisor.supervisor import ServerStatus, Supervisor

_LOOK_INTERVAL_S = 0.2
_DOWN_WAIT_S = 60.0


def up_command(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes any free one.")] = 7600,
    llm_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the language model server.")] = 7601,
    video_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the video model server.")] = 7602,
    data_dir: DataDir = None,
) -> None:
    """Starts the three servers on this machine and keeps them up until Ctrl-C or `halfreel down`.

    What dies is started again. With two GPUs each model server has one of its own. Metrics are 100 ports above.
    Every setting of a server can be given in the environment, such as HALFREEL_LLM_MODEL; see docs/configuration.md.
    """
    check_installed()
    data_folder, ports = data_folder_of(data_dir), Ports(port, llm_port, video_port)
    try:
        with held(data_folder):
            if taken := taken_ports(ports):
                raise CommandError(
                    f"taken by another program: {'; '.join(taken)}; stop it, or choose other ports (0 is any free one)",
                    ExitCode.USAGE,
                )
            servers = specs(ports, data_folder, find_gpus(), os.environ, credentials_of(context))
            with Supervisor(servers, run_folder=data_folder / "run", log_folder=data_folder / "logs") as supervisor:
                _supervise(supervisor, data_folder)
    except AlreadyUpError:
        raise CommandError(
            f"`halfreel up` runs already for {data_folder}; `halfreel down` stops it", ExitCode.USAGE
        ) from None


def down_command(data_dir: DataDir = None) -> None:
    """Stops a running `halfreel up` and waits until its servers have drained."""
    data_folder = data_folder_of(data_dir)
    running = Running.read(data_folder)
    if running is None:
        typer.echo("nothing is up")
        return
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_WAIT_S
    while is_locked(data_folder):
        if time.monotonic() > deadline:
            raise CommandError(
                f"process {running.pid} still stops its servers; running work is being finished", ExitCode.FAILED
            )
        time.sleep(_LOOK_INTERVAL_S)
    typer.echo("down")


def _supervise(supervisor: Supervisor, data_folder: Path) -> None:
    """Shows the servers, and tells others where they are, until they have ended."""
    told: tuple[object, ...] = ()
    welcomed = stopping = False
    with (
        Interruption(supervisor.stop, supervisor.kill_now) as interruption,
        _Screen(lambda: supervisor.statuses) as screen,
    ):
        while not supervisor.ended:
            statuses = supervisor.statuses
            where = tuple((status.name, status.address, status.pid) for status in statuses)
            if where != told:
                told = where
                _running(statuses).write(data_folder)
            screen.servers(statuses)
            while not supervisor.notes.empty():
                note = supervisor.notes.get()
                screen.say(f"{note.name}: {note.text}")
            if supervisor.serving and not welcomed:
                welcomed = True
                screen.say(f"up: the gateway is at {_running(statuses).addresses['gateway']}; Ctrl-C stops")
            if interruption.asked and not stopping:
                stopping = True
                screen.say("stopping: running work may finish; Ctrl-C again ends it at once")
            time.sleep(_LOOK_INTERVAL_S)
    if (refused := supervisor.refused) is not None:
        raise CommandError(f"{refused.name}: {refused.problem}", ExitCode.USAGE)
    if supervisor.error is not None:
        raise supervisor.error


def _running(statuses: tuple[ServerStatus, ...]) -> Running:
    return Running(
        os.getpid(),
        {status.name: status.address for status in statuses if status.address},
        {status.name: status.pid for status in statuses if status.pid is not None},
    )


class _Screen:
    """A line for each server that is kept up to date on a terminal; elsewhere a line for each change."""

    def __init__(self, statuses: Callable[[], tuple[ServerStatus, ...]]) -> None:
        self._console = Console(highlight=False)
        self._live = (
            Live(
                console=self._console,
                get_renderable=lambda: server_lines(statuses()),
                refresh_per_second=4,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if sys.stdout.isatty()
            else None
        )
        self._plain = PlainView(self.say)

    def __enter__(self) -> _Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def servers(self, statuses: tuple[ServerStatus, ...]) -> None:
        """Nothing on a terminal: the lines redraw themselves."""
        if self._live is None:
            self._plain.servers(statuses)

    def say(self, line: str) -> None:
        """A line that stays, above the others."""
        self._console.print(line, markup=False, soft_wrap=True)
