"""Checks of a request's fields, collected so that a client hears of all its mistakes at once.

It does not know any message of the contract: the servicers name the fields.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from halfreel_runtime.errors import InvalidArgument, Violation, shortened

# A value shown in an error is what the client sent: a long one would drown the sentence.
MAX_SHOWN_BYTES = 60
# So many violations are told in the message itself; the details have them all.
MESSAGE_VIOLATION_COUNT = 3


class Checks:
    """Collects what is wrong with a request; `done()` raises once if anything was.

    Each check tells whether it held, so that a later one may depend on it.
    """

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def require(self, ok: bool, field: str, description: str) -> bool:
        """Any condition; the description continues the field's name: "is empty; it must have ..."."""
        if not ok:
            self._violations.append(Violation(field, description))
        return ok

    def between(self, field: str, value: float, low: float, high: float, unit: str = "") -> bool:
        """A finite number within [low, high]."""
        ok = math.isfinite(value) and low <= value <= high
        limit = f"{_number(low)} and {_number(high)}{' ' + unit if unit else ''}"
        return self.require(ok, field, f"is {_number(value)}; it must be between {limit}")

    def multiple_of(self, field: str, value: int, step: int) -> bool:
        """A whole multiple of `step`."""
        return self.require(value % step == 0, field, f"is {value}; it must be a multiple of {step}")

    def one_of(self, field: str, value: str, allowed: Collection[str]) -> bool:
        """One of a few words."""
        return self.require(
            value in allowed, field, f"is {_shown(value)}; it must be one of {', '.join(sorted(allowed))}"
        )

    def text(self, field: str, value: str, *, max_characters: int, min_characters: int = 1) -> bool:
        """Text of at least `min_characters` beside white space and at most `max_characters` in all."""
        if len(value.strip()) < min_characters:
            what = "is empty" if not value.strip() else f"has {len(value.strip())} characters"
            return self.require(False, field, f"{what}; it must have {min_characters} to {max_characters} characters")
        return self.require(
            len(value) <= max_characters,
            field,
            f"has {len(value)} characters; it may have at most {max_characters}",
        )

    def done(self) -> None:
        """Ends the checks.

        Raises:
            InvalidArgument: with every violation, the first of them in its message.
        """
        if not self._violations:
            return
        told = [f"{each.field} {each.description}" for each in self._violations[:MESSAGE_VIOLATION_COUNT]]
        if (more := len(self._violations) - len(told)) > 0:
            told.append(f"and {more} more")
        raise InvalidArgument("; ".join(told) + ".", violations=self._violations)


def _shown(text: str) -> str:
    return repr(shortened(text, MAX_SHOWN_BYTES))


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:g}"
