"""Why a film can't be made, and the errors of the gateway that more than one module raises.

It does not know gRPC calls or the database: others raise what is named here, and the store keeps it with the film.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Mapping

import grpc
import sqlalchemy as sa

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_runtime.errors import NotFound, ResourceExhausted

# EFBIG is a limit on the size of files (ulimit -f): for the one who writes it is no different from a full disk.
_NO_ROOM_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM_TEXTS = ("database or disk is full", "no space left on device", "could not extend file")
DISK_FULL_MESSAGE = "The gateway's disk is full; free some space and make the film again."


class FilmFailedError(Exception):
    """The film can't be made, and trying again would not help.

    Args:
        code: the canonical code told in the film's error.
        reason: a fixed word in capitals.
        message: says what to do next; shown to clients.
        metadata: details with units in the keys.
    """

    def __init__(
        self, code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.error = pb.FilmError(code=code.value[0], reason=reason, message=message, metadata=dict(metadata or {}))


class FilmEndedError(Exception):
    """The film has ended (cancelled, failed or deleted, perhaps by another gateway): nothing more is to be done."""


class FileVanishedError(Exception):
    """A file in the making is gone, as after another gateway took this one for dead: it is to be made once more."""


def film_not_found() -> NotFound:
    """What a client hears of a film that is not there."""
    return NotFound("There is no film with this film_id; ListFilms tells all there are.", reason="FILM_NOT_FOUND")


def disk_full_failure(needed_bytes: int, free_bytes: int) -> FilmFailedError:
    """A film that the disk has no room for; figures that are not known are negative."""
    known = {"needed_bytes": needed_bytes, "free_bytes": free_bytes}
    figures = {key: str(value) for key, value in known.items() if value >= 0}
    told = f" ({needed_bytes} bytes are needed, {free_bytes} are free)" if len(figures) == len(known) else ""
    message = DISK_FULL_MESSAGE.replace(" is full", f" is full{told}")
    return FilmFailedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL", message, figures)


def disk_full_refusal(needed_bytes: int, free_bytes: int) -> ResourceExhausted:
    """What a client hears when its film is not accepted for lack of disk."""
    error = disk_full_failure(needed_bytes, free_bytes).error
    return ResourceExhausted(error.message, reason=error.reason, metadata=error.metadata)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of a file or of the database says that there is no room."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM_ERRNOS
    if isinstance(error, sa.exc.DBAPIError):
        return any(text in str(error.orig).lower() for text in _NO_ROOM_TEXTS)
    return False


def is_database_away(error: BaseException) -> bool:
    """Whether the database can't be reached or can't answer now, so that the same may succeed later.

    An answer that says that what was asked is wrong (a table that is missing, a row that may not be) is none of these.
    """
    if isinstance(error, sa.exc.TimeoutError):  # all connections wait for it
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    # SQLite's driver tells a mistake in what was asked as an OperationalError, too.
    mistaken = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    return error.connection_invalidated or (isinstance(error, sa.exc.OperationalError) and not mistaken)
