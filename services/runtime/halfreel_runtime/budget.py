"""A budget of memory as people write it, "80%" or "12GiB", and what it comes to on a card.

It does not know any device, nor who keeps within the budget.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from halfreel_runtime.errors import FailedPrecondition, InvalidArgument

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_HOW = "it must be an amount such as 12GiB, or a part of the device such as 80%"


@dataclass(frozen=True)
class Budget:
    """Part of a device, or an amount of bytes; of both, the one that is set. Neither: no budget."""

    ratio: float = 0.0
    amount_bytes: int = 0

    def __bool__(self) -> bool:
        return self.ratio > 0 or self.amount_bytes > 0

    def of(self, total_bytes: int) -> int:
        """The budget in bytes on a device of so many; 0 for no budget.

        Raises:
            FailedPrecondition: the device has fewer bytes than the budget.
        """
        if self.amount_bytes > total_bytes:
            raise FailedPrecondition(
                f"memory_budget is {self.amount_bytes} bytes; the device has {total_bytes}.",
                reason="BUDGET_TOO_LARGE",
                metadata={"budget_bytes": str(self.amount_bytes), "device_total_bytes": str(total_bytes)},
            )
        return self.amount_bytes or int(self.ratio * total_bytes)


def parse_bytes(text: str) -> int:
    """Reads an amount: "12GiB", "500 MB", "1073741824".

    Raises:
        InvalidArgument: it is none.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2].lower() not in _UNITS:
        raise InvalidArgument(f"{text!r} is no amount of memory; write it as 12GiB, 500MB or 1073741824.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_budget(text: str) -> Budget:
    """Reads a budget: "80%", "12GiB"; empty, "none" or "0" for none.

    Raises:
        InvalidArgument: it is none of these, or over 100 %.
    """
    if text.strip().lower() in ("", "none", "0"):
        return Budget()
    if (match := _PERCENT.fullmatch(text.strip())) is not None:
        percent = float(match[1])
        if not 0 < percent <= 100:
            raise InvalidArgument(f"memory_budget is {text!r}; it must be over 0 % and at most 100 %.")
        return Budget(ratio=percent / 100)
    try:
        return Budget(amount_bytes=parse_bytes(text))
    except InvalidArgument:
        raise InvalidArgument(f"memory_budget is {text!r}; {_HOW}.") from None


def _checked(text: str) -> str:
    try:
        parse_budget(text)
    except InvalidArgument:
        raise ValueError(_HOW) from None
    return text


def _checked_amount(text: str) -> str:
    try:
        parse_bytes(text)
    except InvalidArgument:
        raise ValueError("it must be an amount such as 512MiB") from None
    return text


# Settings as they are written; `parse_budget` and `parse_bytes` read them.
BudgetText = Annotated[str, AfterValidator(_checked)]
BytesText = Annotated[str, AfterValidator(_checked_amount)]
