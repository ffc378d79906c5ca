"""Checks and errors: every mistake named, every status with its details and nothing else."""

from __future__ import annotations

import base64
import math
import urllib.parse

import grpc
import pytest
from google.rpc import error_details_pb2

from halfreel_runtime import errors
from halfreel_runtime.checks import Checks
from halfreel_runtime.errors import HalfreelError, Internal, InvalidArgument, QueueFull, Violation, status_of


def told(checks: Checks) -> list[str]:
    with pytest.raises(InvalidArgument) as raised:
        checks.done()
    return [f"{each.field} {each.description}" for each in raised.value.violations]


def test_a_right_request_passes() -> None:
    checks = Checks()
    assert checks.between("width_px", 64, 64, 1024)
    assert checks.between("width_px", 1024, 64, 1024)
    assert checks.multiple_of("width_px", 64, 8)
    assert checks.one_of("precision", "fp16", ("fp16", "fp32"))
    assert checks.text("idea", "a red circle", max_characters=12)
    assert checks.require(True, "image", "is missing")
    checks.done()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (63, "63"),
        (1025, "1025"),
        (2**63 - 1, "9223372036854775807"),
        (-1, "-1"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_limits(value: float, shown: str) -> None:
    checks = Checks()
    assert not checks.between("width_px", value, 64, 1024)
    assert told(checks) == [f"width_px is {shown}; it must be between 64 and 1024"]


def test_all_mistakes_are_told_at_once() -> None:
    checks = Checks()
    checks.between("width_px", 1000001, 64, 1024)
    checks.multiple_of("height_px", 70, 8)
    checks.one_of("precision", "fp8", ("fp32", "fp16"))
    checks.text("idea", "  \n", max_characters=10)
    checks.text("name", "x" * 11, max_characters=10)
    checks.between("grace", 0.25, 1, 2, "s")
    with pytest.raises(InvalidArgument) as raised:
        checks.done()
    assert raised.value.message == (
        "width_px is 1000001; it must be between 64 and 1024; height_px is 70; it must be a multiple of 8; "
        "precision is 'fp8'; it must be one of fp16, fp32; and 3 more."
    )
    assert told(checks)[3:] == [
        "idea is empty; it must have 1 to 10 characters",
        "name has 11 characters; it may have at most 10",
        "grace is 0.25; it must be between 1 and 2 s",
    ]


def test_what_a_client_sent_is_never_repeated_at_length() -> None:
    checks = Checks()
    checks.one_of("precision", "é" * 10**6, ("fp16",))
    with pytest.raises(InvalidArgument) as raised:
        checks.done()
    assert len(raised.value.message) < 150


def all_errors(cls: type[HalfreelError] = HalfreelError) -> list[type[HalfreelError]]:
    """The runtime's own; a service may have errors of its own below them, which other tests import."""
    found = [each for sub in cls.__subclasses__() for each in (sub, *all_errors(sub))]
    return [each for each in found if each.__module__.startswith("halfreel_runtime")]


@pytest.mark.parametrize("cls", all_errors())
def test_every_error_has_one_error_info_with_its_reason(cls: type[HalfreelError]) -> None:
    error = cls("It went wrong.", metadata={"width_px": "3"})
    status = status_of(error, "r-1")
    assert status.code == cls.code.value[0] != grpc.StatusCode.UNKNOWN.value[0]
    assert status.message == "It went wrong."
    info = error_details_pb2.ErrorInfo()
    assert [detail.Unpack(info) for detail in status.details] == [True]
    assert (info.reason, info.domain, dict(info.metadata)) == (cls.default_reason, "halfreel", {"width_px": "3"})
    assert cls.__name__ in (errors.__doc__ or ""), "the tree in the module's docstring is whole"


def test_reasons_are_stable_words_and_not_shared_by_siblings() -> None:
    reasons = [cls.default_reason for cls in all_errors()]
    assert len(set(reasons)) == len(reasons)
    assert all(reason == reason.upper() and " " not in reason for reason in reasons)


def test_a_retry_time_is_told() -> None:
    status = status_of(QueueFull("Full.", retry_after_s=1.5), "r-1")
    retry = error_details_pb2.RetryInfo()
    assert [detail.Unpack(retry) for detail in status.details] == [False, True]
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_status_always_fits_into_trailers() -> None:
    worst = InvalidArgument(
        "é" * 10**6,
        metadata={f"key_{number}": "é" * 10**5 for number in range(1000)},
        violations=[Violation("é" * 10**5, "é" * 10**5)] * 1000,
    )
    status = status_of(worst, "r-1")
    details, message = base64.b64encode(status.SerializeToString()), urllib.parse.quote(status.message)
    assert len(details) + len(message) < 7500
    assert status.message.endswith("é…")


def test_an_exception_that_is_not_ours_says_nothing() -> None:
    status = status_of(KeyError("/srv/secret"), "r-1")
    assert status.code == Internal.code.value[0]
    assert "secret" not in str(status)
    assert "r-1" in status.message
