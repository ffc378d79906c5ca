"""Ports for servers that a test starts: chosen before the server is there, so nobody else may take them meanwhile.

They lie under those that the system hands out by itself, and each of the processes that run tests side by side has a
range of its own.
"""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _EACH = 20_000, 1_000
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_numbers = itertools.cycle(range(_FIRST + _worker * _EACH, _FIRST + (_worker + 1) * _EACH))
# Not the same ones in two runs after another: a connection that has ended keeps its port for a minute.
_numbers = itertools.islice(_numbers, os.getpid() % _EACH, None)


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    for number in _numbers:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            return number
    raise AssertionError("the numbers never end")
