"""What an engine asks before it uses the model, and tells after: whoever may send the model to sleep stands here.

It does not know how a model sleeps, nor why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Gate(Protocol):
    """Called by the engine's thread alone, but for `yielding`. A FatalError from any method ends the engine."""

    @property
    def wake_failed(self) -> bool:
        """Whether the model sleeps because it could not be woken."""

    @property
    def look_s(self) -> float | None:
        """How soon `idle` wants to be called again while there is no job; None for not at all."""

    def before_load(self, wanted: Callable[[], bool]) -> None:
        """The model is about to be loaded; may wait for as long as that is wanted.

        Raises:
            Cancelled: it is not wanted any more.
        """

    def enter(self, wanted: Callable[[], bool]) -> None:
        """The model is about to be used: it is awake afterwards. May wait for as long as that is wanted.

        Raises:
            Cancelled: it is not wanted any more.
            WakeFailed: it can't be woken.
        """

    def yielding(self) -> bool:
        """Whether no more work should begin until `leave`, although there is some: it is somebody else's turn."""

    def leave(self, has_waiting: bool) -> None:
        """The model was used, and nothing of a job is left; it may sleep now."""

    def idle(self) -> None:
        """Nothing is to be done at the moment."""


class OpenGate:
    """A model that never sleeps."""

    wake_failed = False
    look_s = None

    def before_load(self, wanted: Callable[[], bool]) -> None:
        """Nothing."""

    def enter(self, wanted: Callable[[], bool]) -> None:
        """Nothing."""

    def yielding(self) -> bool:
        """Never."""
        return False

    def leave(self, has_waiting: bool) -> None:
        """Nothing."""

    def idle(self) -> None:
        """Nothing."""
