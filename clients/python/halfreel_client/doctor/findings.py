"""One thing that was looked at on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        group: what it belongs to, such as "machine" or "llm".
        name: what was looked at.
        ok: whether it is as it must be.
        detail: what is there, or what is missing and what to do.
        needed: whether films can be made here only when it is ok.
    """

    group: str
    name: str
    ok: bool
    detail: str
    needed: bool = True
