"""Ctrl-C and SIGTERM: the first asks the running work to end, the second leaves at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from halfreel_client.command.exits import ExitCode

_SHOW_CURSOR = "\x1b[?25h"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


class Interruption:
    """Handles the signals while it is entered.

    Args:
        on_first: called at the first signal; from then on `asked` is true.
        on_second: called before the process leaves at the second one.
    """

    def __init__(self, on_first: Callable[[], None], on_second: Callable[[], None] = lambda: None) -> None:
        self.asked = False
        self._on_first = on_first
        self._on_second = on_second
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            self._on_first()
            return
        self._on_second()
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), _SHOW_CURSOR.encode())
        os._exit(ExitCode.CANCELLED)


def run_interruptible(
    work: Coroutine[Any, Any, T],
    *,
    on_first: Callable[[], None] = lambda: None,
    on_second: Callable[[], None] = lambda: None,
) -> T:
    """Runs `work` in an event loop of its own; the first signal calls `on_first` there and cancels the work, once.

    Raises:
        asyncio.CancelledError: a signal came, and `work` let the cancellation through.
    """

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def end() -> None:
            on_first()
            task.cancel()

        # By way of the loop: a handler of signals may interrupt a half-written line.
        with Interruption(lambda: _soon(loop, end), on_second):
            return await task

    return asyncio.run(main())


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(call)
