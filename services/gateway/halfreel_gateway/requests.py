"""Checks of the requests to the gateway, and what of them makes two the same.

It does not know what is done with a request.
"""

from __future__ import annotations

import hashlib
import json
import re

from google.protobuf.json_format import MessageToDict

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2
from halfreel_gateway import pages
from halfreel_gateway.failures import film_not_found
from halfreel_gateway.models import check_against_model
from halfreel_runtime.checks import Checks

MAX_REQUEST_ID_CHARACTERS = 128
MAX_IDEA_CHARACTERS = 2000
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
MAX_TRADE_COUNT = 8

# The contract's ranges; what the video model allows is less, and is checked when it is known.
_RANGES: dict[str, tuple[float, float]] = {
    "scene_count": (1, 8),
    "width_px": (64, 2048),
    "height_px": (64, 2048),
    "fps": (1, 60),
    "step_count": (1, 100),
    "scene_seconds": (1, 30),
    "motion_bucket": (1, 255),
    "guidance_scale": (1, 20),
    "temperature": (0, 2),
    "seed": (0, 2**63 - 1),
}
_MULTIPLES_OF_8 = ("width_px", "height_px")
_REQUEST_ID = re.compile(r"[!-~]+")
_TRADE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FILM_ID = re.compile(r"[0-9a-f]{32}")


def check_create(request: pb.CreateFilmRequest, model: video_pb2.GetModelResponse | None) -> None:
    """Checks all fields.

    Args:
        request: as it came.
        model: the video model, when it is known.

    Raises:
        InvalidArgument: with every field that is wrong.
    """
    checks = Checks()
    if checks.text("request_id", request.request_id, max_characters=MAX_REQUEST_ID_CHARACTERS):
        visible = bool(_REQUEST_ID.fullmatch(request.request_id))
        checks.require(visible, "request_id", "has characters that are not visible ASCII; a UUID is best")
    checks.text("idea", request.idea, max_characters=MAX_IDEA_CHARACTERS)
    in_range = True
    for field, value in request.settings.ListFields():  # those that are set
        if field.name not in _RANGES:
            continue
        low, high = _RANGES[field.name]
        in_range &= checks.between(f"settings.{field.name}", value, low, high)
        if field.name in _MULTIPLES_OF_8:
            in_range &= checks.multiple_of(f"settings.{field.name}", value, 8)
    profile = request.settings.profile
    checks.require(
        profile in gpu_pb2.MemoryProfile.values(),
        "settings.profile",
        f"is {profile}; it must be one of {', '.join(gpu_pb2.MemoryProfile.keys())}",
    )
    trades = request.settings.trades
    checks.require(
        len(trades) <= MAX_TRADE_COUNT and all(_TRADE.fullmatch(trade) for trade in trades),
        "settings.trades",
        f"are not at most {MAX_TRADE_COUNT} names in small letters; the video server's GetModel tells those there are",
    )
    checks.require(len(set(trades)) == len(trades), "settings.trades", "names a trade twice; name each at most once")
    if in_range and model is not None:
        check_against_model(checks, request.settings, model)
    checks.done()


def fingerprint(request: pb.CreateFilmRequest) -> str:
    """What two requests for the same film have in common: idea and settings, as they were sent."""
    wanted = {"idea": request.idea, "settings": MessageToDict(request.settings)}
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def checked_film_id(film_id: str) -> str:
    """The id itself, when it may be one.

    Raises:
        InvalidArgument: it is missing.
        NotFound: FILM_NOT_FOUND, because no film has such an id.
    """
    checks = Checks()
    checks.require(bool(film_id), "film_id", "is empty; it must be the film_id that CreateFilm answered")
    checks.done()
    if not _FILM_ID.fullmatch(film_id):
        raise film_not_found()
    return film_id


def checked_page(request: pb.ListFilmsRequest) -> tuple[int, pages.Position | None]:
    """How many films to list, and after which.

    Raises:
        InvalidArgument: the size is out of range, or the token is not ours.
    """
    checks = Checks()
    checks.between("page_size", request.page_size, 0, MAX_PAGE_SIZE)
    position = pages.decode(request.page_token) if request.page_token else None
    ours = position is not None or not request.page_token
    checks.require(ours, "page_token", "is none of this service's; give next_page_token of the page before, unchanged")
    checks.done()
    return request.page_size or DEFAULT_PAGE_SIZE, position
