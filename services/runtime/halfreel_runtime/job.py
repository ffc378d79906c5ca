"""A job of the engine, and the words in which the engine and its callers speak of it.

It does not know what a job computes, nor when it runs.
"""

from __future__ import annotations

import contextvars
import enum
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.events import EventBuffer

E = TypeVar("E")


class EngineState(enum.Enum):
    """Where an engine is in its life; only LOADING, SERVING and WAKE_FAILED have a next state that serves."""

    LOADING = "loading"
    SERVING = "serving"
    # The model sleeps and could not be woken; the next job tries again.
    WAKE_FAILED = "wake_failed"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True)
class Queued:
    """The first event of every run: how many requests wait before this one."""

    waiting_request_count: int


@dataclass(eq=False)
class Job(Generic[E]):
    """Work that waits or runs: a blocking generator, and where its events go.

    Its context is the caller's, so that what it logs carries the request's id.
    """

    steps: Callable[[CancelToken], Iterator[E]]
    token: CancelToken
    events: EventBuffer[E]
    # Whether the model must be awake for it.
    needs_model: bool = True
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    queued_at: float = field(default_factory=time.monotonic)
