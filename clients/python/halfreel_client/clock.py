"""Protobuf's times and enums in Python's words."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from google.protobuf import duration_pb2, timestamp_pb2


class EnumNames(Protocol):
    """A generated enum, as far as it tells the names of its values."""

    def Name(self, number: Any) -> str:
        """The name of a value; ValueError when there is none."""


NamedEnum = TypeVar("NamedEnum", bound=StrEnum)


def seconds_of(duration: duration_pb2.Duration) -> float:
    """Seconds of a duration."""
    return duration.ToNanoseconds() / 1e9


def time_of(stamp: timestamp_pb2.Timestamp) -> datetime:
    """The moment of a timestamp, in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def member_of(kind: type[NamedEnum], names: EnumNames, value: int, prefix: str) -> NamedEnum:
    """The member for a value of a protobuf enum whose names begin with `prefix`, such as "STATE_".

    A server newer than this client may send a value it does not know: that is the member "unknown".
    """
    try:
        return kind(names.Name(value).removeprefix(prefix).lower())
    except ValueError:
        return kind("unknown")
