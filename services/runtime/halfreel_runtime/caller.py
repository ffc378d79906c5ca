"""Who calls: known to whatever a servicer runs in the call's task, and in the threads it asks.

It does not know how a caller was recognised.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from halfreel_runtime.scopes import Scope


@dataclass(frozen=True)
class Caller:
    """Who calls, and what they may.

    Attributes:
        name: what they make belongs to this name; empty where the server asks for no token.
        scopes: what they may do.
    """

    name: str
    scopes: frozenset[Scope]

    @property
    def sees_all(self) -> bool:
        """Whether what others made is shown to them, too."""
        return Scope.ADMIN in self.scopes


# A server without tokens serves whoever reaches it.
ANYBODY = Caller("", frozenset(Scope))

# No default: code that is reached without a caller fails, rather than serves.
caller_var: ContextVar[Caller] = ContextVar("caller")
