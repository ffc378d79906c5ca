"""Pages of ListFilms, and their tokens: where the page before ended, with a check that the token is one of ours.

It does not know where the films come from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from halfreel.gateway.v1 import gateway_pb2 as pb

# Clients take messages of 4 MiB unless they say otherwise.
MAX_PAGE_BYTES = 3 << 20

# Changing it makes old tokens foreign, which is right when their meaning changes.
_CHECK_PREFIX = b"halfreel films page 1:"
_CHECK_BYTES = 9
_BODY = re.compile(rb"(\d{1,18})\.([0-9a-f]{32})")


@dataclass(frozen=True)
class Position:
    """A film's place in the list, which is sorted by time of creation and then id, newest first."""

    create_time_us: int
    film_id: str


def encode(position: Position) -> str:
    """The token of the page that begins after this film."""
    body = f"{position.create_time_us}.{position.film_id}".encode()
    return base64.urlsafe_b64encode(_check(body) + body).decode()


def decode(token: str) -> Position | None:
    """Where the page begins, or None for a token that no gateway made."""
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
    parts = _BODY.fullmatch(body)
    if parts is None or check != _check(body):
        return None
    position = Position(int(parts[1]), parts[2].decode())
    return position if encode(position) == token else None  # base64 has several spellings of the same bytes


def page(films: Sequence[pb.Film], size: int) -> pb.ListFilmsResponse:
    """As many of the films as a page takes and a message holds, and the token of the next.

    Args:
        films: in order; one more than the page takes tells that there is a next.
        size: films that the page takes.
    """
    shown, shown_bytes = 0, 0
    for film in films[:size]:
        shown_bytes += film.ByteSize()
        if shown and shown_bytes > MAX_PAGE_BYTES:
            break
        shown += 1
    token = ""
    if shown < len(films):
        token = encode(Position(films[shown - 1].create_time.ToMicroseconds(), films[shown - 1].film_id))
    return pb.ListFilmsResponse(films=films[:shown], next_page_token=token)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(_CHECK_PREFIX + body).digest()[:_CHECK_BYTES]
