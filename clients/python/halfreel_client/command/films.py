"""`halfreel films`, `watch`, `cancel` and `delete`: films that a gateway has."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfreel_client.aio_client import AsyncClient
from halfreel_client.command.endpoint import Endpoint, endpoint_of
from halfreel_client.command.exits import CommandError, ExitCode, speak_json
from halfreel_client.command.gateway import calling
from halfreel_client.command.interruption import run_interruptible
from halfreel_client.command.make import check_output, view_for
from halfreel_client.command.making import follow, reach
from halfreel_client.command.options import Address, DataDir, Json
from halfreel_client.display.amounts import bytes_text, seconds_text
from halfreel_client.display.as_json import as_json, json_line
from halfreel_client.display.printable import printable
from halfreel_client.display.view import View
from halfreel_client.film import Film, FilmState

_MAX_PAGE_SIZE = 500
_STATE_STYLES = {FilmState.SUCCEEDED: "green", FilmState.FAILED: "red", FilmState.CANCELLED: "dim"}

FilmId = Annotated[str, typer.Argument(metavar="FILM_ID", help="As `make` and `films` tell it.")]


def films_command(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="The most films to list.")] = 20,
    address: Address = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Lists films, newest first."""
    if json:
        speak_json(context)
    with calling(endpoint_of(context, address, data_dir)) as client:
        # One more than wanted tells whether there are more.
        films = list(itertools.islice(client.films(page_size=min(limit + 1, _MAX_PAGE_SIZE)), limit + 1))
    if json:
        for film in films[:limit]:
            typer.echo(json_line(as_json(film)))
        return
    if not films:
        typer.echo('no films yet; `halfreel make "..."` makes one')
        return
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(_film_table(films[:limit]))
    if len(films) > limit:
        typer.echo(f"there are more; --limit {2 * limit} shows the next")


def watch_command(
    context: typer.Context,
    film_id: FilmId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the MP4 when it is there.")
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(min=0, help="The last sequence number that was seen: what came since is told again."),
    ] = None,
    address: Address = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Follows a film until it ends, also one that others asked for; joins again when the gateway was away.

    Ctrl-C leaves the film alone.
    """
    if json:
        speak_json(context)
    if output is not None:
        check_output(output)
        output = output.resolve()
    with view_for(json, film_id) as view:
        try:
            run_interruptible(_watch(endpoint_of(context, address, data_dir), film_id, view, output, after))
        except asyncio.CancelledError:
            raise CommandError(
                f"left; the film goes on, and `halfreel cancel {film_id}` stops it", ExitCode.CANCELLED
            ) from None


def cancel_command(context: typer.Context, film_id: FilmId, address: Address = None, data_dir: DataDir = None) -> None:
    """Cancels a film; one that has ended stays as it is."""
    with calling(endpoint_of(context, address, data_dir)) as client:
        film = client.cancel(film_id)
    typer.echo(
        f"film {film.film_id} is {film.state}" if film.state.ended else f"film {film.film_id} is being cancelled"
    )


def delete_command(context: typer.Context, film_id: FilmId, address: Address = None, data_dir: DataDir = None) -> None:
    """Deletes a film that has ended, with its files."""
    with calling(endpoint_of(context, address, data_dir)) as client:
        client.delete(film_id)
    typer.echo(f"film {printable(film_id)} is deleted")


async def _watch(endpoint: Endpoint, film_id: str, view: View, output: Path | None, after: int | None) -> None:
    async with AsyncClient(endpoint.address, credentials=endpoint.credentials) as client:
        await reach(client, endpoint)
        await follow(client, film_id, view, output, after)


def _film_table(films: Iterable[Film]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("film", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("made", no_wrap=True)
    table.add_column("scenes", justify="right")
    table.add_column("length", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("title", overflow="ellipsis", no_wrap=True)
    for film in films:
        state = film.state.replace("_", " ") + ("" if film.state.ended else f" {film.progress_ratio:.0%}")
        table.add_row(
            film.film_id,
            Text(state, style=_STATE_STYLES.get(film.state, "cyan")),
            _local(film.create_time),
            str(len(film.scenes) or ""),
            seconds_text(film.video.duration_s) if film.video else "",
            bytes_text(film.video.size_bytes) if film.video else "",
            Text(printable(film.title or film.idea)),
        )
    return table


def _local(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M}"
