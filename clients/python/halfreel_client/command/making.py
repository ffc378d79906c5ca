"""Makes one film: asks for it, follows it, saves it; cancels it when interrupted."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfreel_client.aio_client import AsyncClient
from halfreel_client.command.endpoint import Endpoint
from halfreel_client.command.exits import CommandError, ExitCode
from halfreel_client.command.gateway import REACH_S, unreached
from halfreel_client.command.local_servers import serving, tend
from halfreel_client.display.view import View
from halfreel_client.download import part_path
from halfreel_client.errors import HalfreelError, ResourceExhausted
from halfreel_client.film import Film, FilmState
from halfreel_client.film_settings import FilmSettings
from halfreel_client.memory import ServerMemory
from halfreel_client.supervisor.stack import local_credentials
from halfreel_client.supervisor.supervisor import Supervisor

_CANCEL_S = 5.0
_MEMORY_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Order:
    """A film that is wanted, and where its MP4 goes."""

    idea: str
    settings: FilmSettings
    output: Path
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)


async def make(order: Order, view: View, endpoint: Endpoint, supervisor: Supervisor | None) -> None:
    """Makes a film with the servers of `supervisor`, or else with the gateway at `endpoint`.

    Raises:
        CommandError, HalfreelError: it could not be made.
        OSError: it could not be written.
        asyncio.CancelledError: interrupted; the film was cancelled.
    """
    if supervisor is None:
        await _make_at(order, view, endpoint)
        return

    async def work() -> None:
        credentials = local_credentials("gateway", endpoint.credentials, os.environ)
        await _make_at(order, view, Endpoint(await serving(supervisor), credentials))

    await _beside(work(), tend(supervisor, view))


async def follow(client: AsyncClient, film_id: str, view: View, output: Path | None, after: int | None = None) -> None:
    """Shows a film until it ends, then saves its MP4 if `output` is given.

    Args:
        client: of the gateway that has the film.
        film_id: the film.
        view: shows it.
        output: where its MP4 goes, if it becomes one.
        after: the last sequence number that was seen before; None begins with the film as it is.

    Raises:
        CommandError: it failed or was cancelled.
        HalfreelError: the gateway does not know it, or is gone for too long.
    """

    async def work() -> None:
        async for event in client.watch(film_id, after):
            view.event(event)

    await _beside(work(), _show_memory(client, view))
    film = await client.get_film(film_id)
    path = output if film.state is FilmState.SUCCEEDED else None
    if path is not None:
        await client.save_video(film_id, path)
    view.done(film, await _memory(client), path)
    _check_end(film)


async def reach(client: AsyncClient, endpoint: Endpoint) -> None:
    """Raises CommandError when no gateway answers soon."""
    if not await client.wait_reachable(REACH_S):
        raise unreached(endpoint)


async def _make_at(order: Order, view: View, endpoint: Endpoint) -> None:
    async with AsyncClient(endpoint.address, credentials=endpoint.credentials) as client:
        await reach(client, endpoint)
        film: Film | None = None
        try:
            film = await client.create_film(order.idea, order.settings, request_id=order.request_id)
            view.accepted(film)
            await follow(client, film.film_id, view, order.output)
        except asyncio.CancelledError:
            await _give_up(client, order, film)
            raise


async def _give_up(client: AsyncClient, order: Order, film: Film | None) -> None:
    """Cancels the film, also one whose acceptance was not heard of, and removes what was saved of it."""
    try:
        async with asyncio.timeout(_CANCEL_S):
            if film is None:
                film = await client.create_film(order.idea, order.settings, request_id=order.request_id)
            film = await client.cancel(film.film_id)
    except (HalfreelError, TimeoutError):
        if film is not None:
            raise CommandError(
                f"the film could not be cancelled and goes on; `halfreel cancel {film.film_id}` cancels it",
                ExitCode.CANCELLED,
            ) from None
    if film is not None and film.video is not None:
        part_path(order.output, film.video).unlink(missing_ok=True)


async def _beside(work: Coroutine[Any, Any, None], companion: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end, and `companion` for as long; an error of either ends both."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(companion)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _show_memory(client: AsyncClient, view: View) -> None:
    while True:
        if servers := await _memory(client):
            view.memory(servers)
        await asyncio.sleep(_MEMORY_INTERVAL_S)


async def _memory(client: AsyncClient) -> tuple[ServerMemory, ...]:
    """The servers' memory; nothing while the gateway is away, which the film's own events tell."""
    try:
        return await client.memory()
    except HalfreelError:
        return ()


def _check_end(film: Film) -> None:
    if film.state is FilmState.CANCELLED:
        raise CommandError("the film was cancelled", ExitCode.CANCELLED)
    if film.error is not None:
        exhausted = film.error.code == ResourceExhausted.code.value[0]
        raise CommandError(
            f"the film failed: {film.error.message} [{film.error.reason}]",
            ExitCode.EXHAUSTED if exhausted else ExitCode.FAILED,
        )
