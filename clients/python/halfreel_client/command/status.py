"""`halfreel status`: the memory of every model server and GPU, live."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from halfreel_client.aio_client import AsyncClient
from halfreel_client.command.endpoint import Endpoint, endpoint_of
from halfreel_client.command.exits import speak_json
from halfreel_client.command.interruption import run_interruptible
from halfreel_client.command.making import reach
from halfreel_client.command.options import Address, DataDir, Json
from halfreel_client.display.as_json import as_json, json_line
from halfreel_client.display.memory_table import memory_table
from halfreel_client.memory import ServerMemory

_INTERVAL_S = 1.0
_PLAIN_COLUMNS = 200


def status_command(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Tell it once and end.")] = False,
    address: Address = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Shows the memory of every model server and its GPU each second, until Ctrl-C. Once, if not on a terminal."""
    if json:
        speak_json(context)
    live = sys.stdout.isatty() or json
    try:
        run_interruptible(_show(endpoint_of(context, address, data_dir), json, once or not live))
    except asyncio.CancelledError:
        return  # Ctrl-C is the way to end it


async def _show(endpoint: Endpoint, json: bool, once: bool) -> None:
    async with AsyncClient(endpoint.address, credentials=endpoint.credentials) as client:
        await reach(client, endpoint)
        servers = await client.memory()
        if json:
            _write_json(servers)
            while not once:
                await asyncio.sleep(_INTERVAL_S)
                _write_json(await client.memory())
            return
        console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_COLUMNS)
        if once:
            console.print(memory_table(servers))
            return
        with Live(memory_table(servers), console=console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(_INTERVAL_S)
                live.update(memory_table(await client.memory()), refresh=True)


def _write_json(servers: tuple[ServerMemory, ...]) -> None:
    typer.echo(json_line({"time": datetime.now(UTC).isoformat(), "servers": as_json(servers)}))
