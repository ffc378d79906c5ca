"""GatewayService: check, one call, map. It does not know how films are made or kept."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc
from halfreel_gateway import pages
from halfreel_gateway.database_call import in_database
from halfreel_gateway.hub import Hub
from halfreel_gateway.memory import ServersMemory
from halfreel_gateway.reception import Reception
from halfreel_gateway.requests import checked_film_id, checked_page
from halfreel_gateway.videos import read_video
from halfreel_gateway.watch import watch
from halfreel_runtime.caller import caller_var

Context = grpc.aio.ServicerContext[object, object]


class GatewayService(gateway_pb2_grpc.GatewayServiceServicer):
    """The servicer.

    Args:
        reception: takes films in and lets them go.
        hub: has the watchers.
        memory: asks the model servers.
    """

    def __init__(self, reception: Reception, hub: Hub, memory: ServersMemory) -> None:
        self._reception = reception
        self._store = reception.store
        self._hub = hub
        self._memory = memory

    async def CreateFilm(self, request: pb.CreateFilmRequest, context: Context) -> pb.CreateFilmResponse:
        """Accepts a film and returns at once."""
        return pb.CreateFilmResponse(film=await in_database(self._reception.create, request, caller_var.get().name))

    async def GetFilm(self, request: pb.GetFilmRequest, context: Context) -> pb.GetFilmResponse:
        """Tells all of one film."""
        stored = await in_database(self._store.film, await self._visible(request.film_id))
        return pb.GetFilmResponse(film=stored.film)

    async def ListFilms(self, request: pb.ListFilmsRequest, context: Context) -> pb.ListFilmsResponse:
        """Lists films, newest first."""
        size, after = checked_page(request)
        films = await in_database(self._store.films, size + 1, after, owner=_visible_owner())
        return pages.page(films, size)

    async def WatchFilm(self, request: pb.WatchFilmRequest, context: Context) -> AsyncIterator[pb.WatchFilmResponse]:
        """Follows a film until it ends."""
        film_id = await self._visible(request.film_id)
        after = request.after_sequence_number if request.HasField("after_sequence_number") else None
        async for event in watch(self._hub, self._store, film_id, after, preview=request.preview):
            yield event

    async def CancelFilm(self, request: pb.CancelFilmRequest, context: Context) -> pb.CancelFilmResponse:
        """Stops a film."""
        film = await in_database(self._store.cancel, await self._visible(request.film_id))
        return pb.CancelFilmResponse(film=film)

    async def DeleteFilm(self, request: pb.DeleteFilmRequest, context: Context) -> pb.DeleteFilmResponse:
        """Deletes a film that has ended."""
        await in_database(self._reception.delete, await self._visible(request.film_id))
        return pb.DeleteFilmResponse()

    async def ReadVideo(self, request: pb.ReadVideoRequest, context: Context) -> AsyncIterator[pb.ReadVideoResponse]:
        """Streams the finished MP4."""
        film_id = await self._visible(request.film_id)
        async for piece in read_video(self._store, self._reception.artifacts, film_id, request.offset_bytes):
            yield piece

    async def MemoryStatus(self, request: pb.MemoryStatusRequest, context: Context) -> pb.MemoryStatusResponse:
        """Tells the memory of every model server."""
        return pb.MemoryStatusResponse(servers=await self._memory.ask())

    async def _visible(self, film_id: str) -> str:
        """A film's id, after a check that it is one and that the caller may know of the film."""
        checked = checked_film_id(film_id)
        if (owner := _visible_owner()) is not None:
            await in_database(self._store.check_owner, checked, owner)
        return checked


def _visible_owner() -> str | None:
    """Whose films the caller may know of; None for everybody's."""
    caller = caller_var.get()
    return None if caller.sees_all else caller.name
