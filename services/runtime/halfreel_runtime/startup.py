"""Mistakes of a server's start, told to the person who starts it in one line instead of a traceback.

It does not know what is started.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from halfreel_runtime.errors import HalfreelError
from halfreel_runtime.settings import EXIT_USAGE

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Around what a `__main__` does before its server runs, such as finding the device.

    Raises:
        SystemExit: 2, with one line in the log, in place of a HalfreelError.
    """
    try:
        yield
    except HalfreelError as error:
        _logger.error("not_started", extra={"reason": error.message})
        raise SystemExit(EXIT_USAGE) from None
