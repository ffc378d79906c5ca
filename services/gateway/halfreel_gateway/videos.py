"""Reads a finished film for a client, piece by piece, and notices when it is not what it was.

It does not know who reads.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway.artifacts import Artifacts, read_pieces
from halfreel_gateway.database_call import in_database
from halfreel_gateway.store import FilmStore
from halfreel_runtime.checks import Checks
from halfreel_runtime.errors import DataLoss, FailedPrecondition

# Small enough to share a connection with other streams, large enough to cost nothing.
PIECE_BYTES = 512 * 1024


async def read_video(
    store: FilmStore, artifacts: Artifacts, film_id: str, offset_bytes: int
) -> AsyncIterator[pb.ReadVideoResponse]:
    """The film's MP4 from an offset on.

    Args:
        store: has the film.
        artifacts: has its file.
        film_id: the film.
        offset_bytes: where to begin.

    Raises:
        NotFound: FILM_NOT_FOUND.
        FailedPrecondition: VIDEO_NOT_READY.
        InvalidArgument: the offset is beyond the end.
        DataLoss: VIDEO_DAMAGED.
    """
    film = (await in_database(store.film, film_id)).film
    if film.state != pb.Film.STATE_SUCCEEDED:
        state = pb.Film.State.Name(film.state).removeprefix("STATE_")
        raise FailedPrecondition(
            f"The film is {state}; its video can be read once it has SUCCEEDED.",
            reason="VIDEO_NOT_READY",
            metadata={"state": state},
        )
    size_bytes = film.video.size_bytes
    checks = Checks()
    checks.between("offset_bytes", offset_bytes, 0, size_bytes, "bytes")
    checks.done()
    path = artifacts.film(film_id)
    try:
        if (await asyncio.to_thread(path.stat)).st_size != size_bytes:
            raise _damaged()
        pieces, digest, sent_bytes = read_pieces(path, offset_bytes, PIECE_BYTES), hashlib.sha256(), offset_bytes
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield pb.ReadVideoResponse(offset_bytes=sent_bytes, data=piece)
            digest.update(piece)
            sent_bytes += len(piece)
    except OSError as error:
        raise _damaged() from error
    # A client that reads from the start hears of damage inside as well; the last piece is then not the end.
    if sent_bytes != size_bytes or (offset_bytes == 0 and digest.hexdigest() != film.video.sha256):
        raise _damaged()


def _damaged() -> DataLoss:
    return DataLoss(
        "The film's file is missing or damaged on the gateway's disk; make the film again.", reason="VIDEO_DAMAGED"
    )
