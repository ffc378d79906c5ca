"""`halfreel status`: the memory of every model server and GPU, live; and with --watch what waits and what is made."""

from __future__ import annotations

import asyncio
import functools
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from halfreel_client.aio_client import AsyncClient
from halfreel_client.command.endpoint import Endpoint, endpoint_of
from halfreel_client.command.exits import speak_json
from halfreel_client.command.interruption import run_interruptible
from halfreel_client.command.making import reach
from halfreel_client.command.options import Address, DataDir, Json
from halfreel_client.display.as_json import Json as JsonValue
from halfreel_client.display.as_json import as_json, json_line
from halfreel_client.display.memory_table import memory_table
from halfreel_client.display.watch_view import watch_view
from halfreel_client.film import Film
from halfreel_client.memory import ServerMemory

_INTERVAL_S = 1.0
_PLAIN_COLUMNS = 200
# Films in the making are among these: a gateway takes 64 at once by default, and the newest are told first.
_NEWEST_FILMS = 100


def status_command(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Tell it once and end.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show GPUs, queues and films in the making on the whole screen.")
    ] = False,
    address: Address = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Shows the memory of every model server and its GPU each second, until Ctrl-C. Once, if not on a terminal."""
    if json:
        speak_json(context)
    live = sys.stdout.isatty() or json
    try:
        run_interruptible(_show(endpoint_of(context, address, data_dir), json, once or not live, watch))
    except asyncio.CancelledError:
        return  # Ctrl-C is the way to end it


async def _show(endpoint: Endpoint, json: bool, once: bool, watch: bool) -> None:
    async with AsyncClient(endpoint.address, credentials=endpoint.credentials) as client:
        await reach(client, endpoint)
        look = functools.partial(_look, client, watch)
        seen = await look()
        if json:
            _write_json(seen)
            while not once:
                await asyncio.sleep(_INTERVAL_S)
                _write_json(await look())
            return
        console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_COLUMNS)
        if once:
            console.print(seen.shown())
            return
        with Live(seen.shown(), console=console, auto_refresh=False, screen=watch) as live:
            while True:
                await asyncio.sleep(_INTERVAL_S)
                live.update((await look()).shown(), refresh=True)


@dataclass(frozen=True)
class _Seen:
    """One look at everything; `films` is None where nobody asked for them."""

    servers: tuple[ServerMemory, ...]
    films: tuple[Film, ...] | None

    def shown(self) -> RenderableType:
        return memory_table(self.servers) if self.films is None else watch_view(self.servers, self.films)


async def _look(client: AsyncClient, watch: bool) -> _Seen:
    if not watch:
        return _Seen(await client.memory(), None)
    servers, page = await asyncio.gather(client.memory(), client.list_films(page_size=_NEWEST_FILMS))
    return _Seen(servers, page.films)


def _write_json(seen: _Seen) -> None:
    line: dict[str, JsonValue] = {"time": datetime.now(UTC).isoformat(), "servers": as_json(seen.servers)}
    if seen.films is not None:
        line["films"] = as_json(tuple(film for film in seen.films if not film.state.ended))
    typer.echo(json_line(line))
