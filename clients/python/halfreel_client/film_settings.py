"""What is wanted of a film beside its idea, and the message that asks for it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from halfreel.gateway.v1 import gateway_pb2
from halfreel_client.errors import InvalidArgument, Violation
from halfreel_client.memory import MemoryProfile, profile_from, profile_number


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmSettings:
    """What is wanted of a film beside its idea; None leaves the choice to the servers.

    Ranges: scene_count 1 to 8; width_px and height_px 64 to 2,048, multiples of 8; fps 1 to 60; step_count 1 to 100;
    scene_seconds 1 to 30; motion_bucket 1 to 255; guidance_scale 1 to 20; temperature 0 to 2; seed 0 to 2^63 - 1.
    With `allow_cheaper`, scenes that do not fit in memory are rendered in the first cheaper form that does. `trades`
    names what of the clips' quality is given for time, as the video model offers it. With `continuous`, each scene but
    the first starts from the last frame of the scene before.
    """

    scene_count: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    fps: int | None = None
    step_count: int | None = None
    scene_seconds: int | None = None
    motion_bucket: int | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    seed: int | None = None
    profile: MemoryProfile | None = None
    allow_cheaper: bool = False
    trades: tuple[str, ...] = ()
    continuous: bool = False


def create_request(idea: str, settings: FilmSettings, request_id: str) -> gateway_pb2.CreateFilmRequest:
    """The message that asks for a film.

    Raises:
        InvalidArgument: a value does not even fit its field of the message; limits are checked by the gateway.
    """
    message = gateway_pb2.CreateFilmRequest(request_id=request_id, settings=gateway_pb2.FilmSettings())
    try:
        message.idea = idea
    except ValueError:  # a lone surrogate, as a terminal in another encoding makes them
        raise _refused("idea", "must be text in UTF-8") from None
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is None:
            continue
        if isinstance(value, MemoryProfile):
            value = profile_number(value)
        try:
            if isinstance(value, tuple):
                getattr(message.settings, field.name).extend(value)
            else:
                setattr(message.settings, field.name, value)
        except (ValueError, TypeError):
            raise _refused(f"settings.{field.name}", f"{value!r} does not fit this field") from None
    return message


def _refused(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: {description}", reason="INVALID_FIELD", violations=[Violation(field, description)]
    )


def settings_from(message: gateway_pb2.FilmSettings) -> FilmSettings:
    """The settings of a message."""
    plain = {"profile", "allow_cheaper", "trades", "continuous"}  # without presence: their defaults are values
    return FilmSettings(
        **{
            field.name: getattr(message, field.name)
            for field in fields(FilmSettings)
            if field.name not in plain and message.HasField(field.name)  # type: ignore[arg-type]  # the names are the message's own
        },
        profile=profile_from(message.profile),
        allow_cheaper=message.allow_cheaper,
        trades=tuple(message.trades),
        continuous=message.continuous,
    )
