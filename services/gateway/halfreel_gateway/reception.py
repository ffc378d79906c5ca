"""Takes films in, and lets go of those that have ended.

It does not know gRPC's server, nor how films are made: `start` begins that.
"""

from __future__ import annotations

from collections.abc import Callable

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import seeds
from halfreel_gateway.artifacts import Artifacts
from halfreel_gateway.failures import disk_full_refusal, is_disk_full
from halfreel_gateway.models import Models
from halfreel_gateway.requests import check_create, fingerprint
from halfreel_gateway.store import FilmStore


class Reception:
    """Where films come in and go.

    Args:
        store: of films.
        artifacts: of their files.
        models: tell what the video model can do.
        start: starts a film's production, unless it was started before.
        forget: removes what was kept of an ended film's production.
        min_free_bytes: with less on the disk, new films are refused.
    """

    def __init__(
        self,
        store: FilmStore,
        artifacts: Artifacts,
        models: Models,
        start: Callable[[str], None],
        forget: Callable[[str], None],
        min_free_bytes: int,
    ) -> None:
        self.store = store
        self.artifacts = artifacts
        self._models = models
        self._start = start
        self._forget = forget
        self._min_free_bytes = min_free_bytes

    def create(self, request: pb.CreateFilmRequest, owner: str) -> pb.Film:
        """Stores a film and starts it; for a request that its owner sent before, finds its film.

        Raises:
            InvalidArgument: INVALID_FIELD.
            AlreadyExists: REQUEST_ID_REUSED.
            ResourceExhausted: QUEUE_FULL or DISK_FULL.
        """
        check_create(request, None)
        wanted = fingerprint(request)
        free_bytes = self.artifacts.free_bytes()
        # A film that was accepted before the model was changed or the disk filled up stays accepted, for a client that
        # asks once more.
        if self.store.of_request(owner, request.request_id, wanted) is None:
            check_create(request, self._models.known_video())
            if free_bytes < self._min_free_bytes:
                raise disk_full_refusal(self._min_free_bytes, free_bytes)
        settings = pb.FilmSettings()
        settings.CopyFrom(request.settings)
        if not settings.HasField("seed"):
            settings.seed = seeds.random_seed()
        try:
            film = self.store.create(request.request_id, request.idea, settings, wanted, owner=owner)
            if film.state == pb.Film.STATE_QUEUED:
                self._start(film.film_id)
        except Exception as error:
            if is_disk_full(error):
                raise disk_full_refusal(-1, free_bytes) from error
            raise
        return film

    def delete(self, film_id: str) -> None:
        """Forgets a film that has ended, and removes its files.

        Raises:
            NotFound: FILM_NOT_FOUND.
            FailedPrecondition: FILM_NOT_ENDED.
        """
        unused_clips = self.store.delete(film_id)
        self.artifacts.remove_film(film_id)
        for sha256 in unused_clips:
            self.artifacts.remove_clip(sha256)
        self._forget(film_id)
