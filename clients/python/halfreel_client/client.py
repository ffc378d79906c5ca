"""The blocking client of a gateway; it knows no model server."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from halfreel.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from halfreel_client.channel import DEFAULT_ADDRESS, open_channel, reachable
from halfreel_client.credentials import Credentials
from halfreel_client.download import Download
from halfreel_client.errors import HalfreelError, raising
from halfreel_client.film import Film, FilmPage, film_from, video_of
from halfreel_client.film_events import FilmEvent, own_event
from halfreel_client.film_settings import FilmSettings, create_request
from halfreel_client.memory import ServerMemory, server_memory_from
from halfreel_client.patience import Patience
from halfreel_client.watching import Watching


class Client:
    """Calls a gateway; may be shared by threads.

    Args:
        address: the gateway, as host:port.
        credentials: certificates and token, for a gateway that asks for them.
        timeout_s: limit of every call but for streams, in seconds.
        patience_s: how long a call that may be made again is made again while the gateway is unavailable, in seconds.

    Every method raises HalfreelError, see `halfreel_client.errors`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        credentials: Credentials | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 60.0,
    ) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._channel = open_channel(address, credentials)
        self._stub = gateway_pb2_grpc.GatewayServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls that run are cancelled."""
        self._channel.close()

    def create_film(self, idea: str, settings: FilmSettings | None = None, *, request_id: str | None = None) -> Film:
        """Asks for a film and returns at once. The same `request_id` gives the same film; made here when absent."""
        request = create_request(idea, settings or FilmSettings(), request_id or uuid.uuid4().hex)
        patience = Patience(self._patience_s)
        while True:
            try:
                with raising(self.address):
                    return film_from(self._stub.CreateFilm(request, timeout=self._timeout_s).film)
            except HalfreelError as error:
                time.sleep(patience.delay_s(error))

    def get_film(self, film_id: str) -> Film:
        """The film as it is."""
        with raising(self.address):
            request = gateway_pb2.GetFilmRequest(film_id=film_id)
            return film_from(self._stub.GetFilm(request, timeout=self._timeout_s).film)

    def list_films(self, *, page_size: int = 0, page_token: str = "") -> FilmPage:
        """One page of films, newest first; 0 films a page is the gateway's default."""
        with raising(self.address):
            request = gateway_pb2.ListFilmsRequest(page_size=page_size, page_token=page_token)
            page = self._stub.ListFilms(request, timeout=self._timeout_s)
            return FilmPage(tuple(film_from(film) for film in page.films), page.next_page_token)

    def films(self, *, page_size: int = 0) -> Iterator[Film]:
        """All films, newest first; pages are fetched as they are needed."""
        token = ""
        while True:
            page = self.list_films(page_size=page_size, page_token=token)
            yield from page.films
            if not (token := page.next_page_token):
                return

    def watch(self, film_id: str, after: int | None = None, *, preview: bool = False) -> Iterator[FilmEvent]:
        """Follows a film until it ends: the film as it is, then events. Joins again when the gateway went away.

        Args:
            film_id: the film.
            after: the last sequence number seen; stored events after it come again. None begins with what is new.
            preview: whether previews are wanted.
        """
        watching = Watching(film_id, after, preview, self._patience_s)
        while True:
            call = self._stub.WatchFilm(watching.request())
            try:
                with raising(self.address):
                    for message in call:
                        if (event := watching.heard(message)) is not None:
                            yield event
                return
            except HalfreelError as error:
                rejoining = watching.lost(error)
                yield own_event(rejoining)
                time.sleep(rejoining.delay_s)
            finally:
                call.cancel()

    def cancel(self, film_id: str) -> Film:
        """Stops a film; one that has ended stays as it is."""
        with raising(self.address):
            request = gateway_pb2.CancelFilmRequest(film_id=film_id)
            return film_from(self._stub.CancelFilm(request, timeout=self._timeout_s).film)

    def delete(self, film_id: str) -> None:
        """Deletes a film that has ended, and its files."""
        with raising(self.address):
            self._stub.DeleteFilm(gateway_pb2.DeleteFilmRequest(film_id=film_id), timeout=self._timeout_s)

    def save_video(self, film_id: str, path: str | os.PathLike[str]) -> Path:
        """Writes the finished MP4 to `path`, checked by its SHA-256; a broken-off try goes on where it ended.

        Raises:
            OSError: the file cannot be written.
        """
        artifact = video_of(self.get_film(film_id))
        patience = Patience(self._patience_s)
        with Download(Path(path), artifact) as download:
            while download.offset_bytes < artifact.size_bytes:
                request = gateway_pb2.ReadVideoRequest(film_id=film_id, offset_bytes=download.offset_bytes)
                try:
                    with raising(self.address):
                        for piece in self._stub.ReadVideo(request):
                            patience.renew()
                            download.write(piece.offset_bytes, piece.data)
                    break
                except HalfreelError as error:
                    time.sleep(patience.delay_s(error))
            download.finish()
        return Path(path)

    def memory(self) -> tuple[ServerMemory, ...]:
        """The memory of every model server that the gateway knows."""
        with raising(self.address):
            reply = self._stub.MemoryStatus(gateway_pb2.MemoryStatusRequest(), timeout=self._timeout_s)
            return tuple(server_memory_from(server) for server in reply.servers)

    def wait_reachable(self, timeout_s: float) -> bool:
        """Whether the gateway was reached within `timeout_s` seconds; one that answers with an error was, too."""
        return reachable(self._channel, timeout_s)
