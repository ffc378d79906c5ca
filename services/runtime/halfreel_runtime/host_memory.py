"""The host's memory as this process may have it: the machine's, or less where its control group has a limit.

It does not know what the memory is used for.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class HostMemory:
    """Bytes that there are, and bytes that can be had without swapping."""

    total_bytes: int
    available_bytes: int


def host_memory(cgroups: Path = _CGROUPS) -> HostMemory:
    """Reads both; a container's limit counts, less what it holds and could not drop.

    Args:
        cgroups: where control groups are mounted; a container sees its own at the top.
    """
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    with contextlib.suppress(OSError, ValueError):  # no control groups, no limit ("max"), or those of version 1
        limit = int((cgroups / "memory.max").read_text())
        used = int((cgroups / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroups / "memory.stat").read_text().splitlines())
        available = min(available, max(0, limit - used + int(stat.get("inactive_file", 0))))
        total = min(total, limit)
    return HostMemory(total, available)
