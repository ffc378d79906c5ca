"""The processors that this process may use, which in a container are often fewer than the machine has."""

from __future__ import annotations

import os


def processor_count() -> int:
    """Returns how many; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
