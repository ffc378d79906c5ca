"""The three servers, started for one film and stopped after it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from halfreel_client.command.exits import CommandError, ExitCode
from halfreel_client.credentials import Credentials
from halfreel_client.display.view import View
from halfreel_client.gpus import find_gpus
from halfreel_client.supervisor.running import held, is_locked
from halfreel_client.supervisor.stack import Ports, missing_packages, specs
from halfreel_client.supervisor.supervisor import ServerState, Supervisor

_KILL_AFTER_S = 10.0
_GIVE_UP_FAILURE_COUNT = 4
_LOOK_INTERVAL_S = 0.1
_PREFIX = "make-"
# Another command's folder may be made, and not locked yet.
_YOUNG_S = 10.0


def check_installed() -> None:
    """Raises CommandError where a server's package is missing."""
    if missing := missing_packages():
        raise CommandError(
            f"not installed here: {', '.join(missing)}; pip install them, one folder each", ExitCode.USAGE
        )


@contextmanager
def local_servers(data_folder: Path, credentials: Credentials) -> Iterator[Supervisor]:
    """Three servers on free ports with a data folder of their own, which is removed after them.

    Their logs stay in `data_folder`/logs/make.

    Args:
        data_folder: theirs is made in it.
        credentials: for servers that the environment gives certificates or tokens.
    """
    check_installed()
    data_folder.mkdir(parents=True, exist_ok=True)
    _sweep(data_folder)
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=data_folder, ignore_cleanup_errors=True) as folder,
        held(Path(folder)),
    ):
        servers = specs(Ports(0, 0, 0), Path(folder) / "gateway", find_gpus(), os.environ, credentials, passing=True)
        with Supervisor(
            servers,
            run_folder=Path(folder),
            log_folder=data_folder / "logs" / "make",
            grace_s=_KILL_AFTER_S,
        ) as supervisor:
            yield supervisor


def _sweep(data_folder: Path) -> None:
    """Removes the folders of commands that were killed; one that still runs keeps its folder locked."""
    for folder in data_folder.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # another command has just removed its own
            if time.time() - folder.stat().st_mtime > _YOUNG_S and not is_locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


async def tend(supervisor: Supervisor, view: View) -> None:
    """Shows the servers until cancelled.

    Raises:
        CommandError: a server's settings are wrong, or a server does not come up.
    """
    served: set[str] = set()
    while True:
        view.servers(supervisor.statuses)
        while not supervisor.notes.empty():
            view.note(supervisor.notes.get())
        served |= {status.name for status in supervisor.statuses if status.state is ServerState.SERVING}
        if (refused := supervisor.refused) is not None:
            raise CommandError(f"{refused.name}: {refused.problem}", ExitCode.USAGE)
        if supervisor.error is not None:
            raise supervisor.error
        for status in supervisor.statuses:
            if status.name not in served and status.failure_count >= _GIVE_UP_FAILURE_COUNT:
                raise CommandError(
                    f"{status.name} does not start: it {status.problem}; its log is {status.log_path}",
                    ExitCode.UNREACHABLE,
                )
        await asyncio.sleep(_LOOK_INTERVAL_S)


async def serving(supervisor: Supervisor) -> str:
    """Waits until all servers serve; the gateway's address."""
    while not supervisor.serving:
        await asyncio.sleep(_LOOK_INTERVAL_S)
    return next(status.address for status in supervisor.statuses if status.name == "gateway")
