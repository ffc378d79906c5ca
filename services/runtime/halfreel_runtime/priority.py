"""Who computes on the CPU gives way to who answers: an engine's thread steps back behind the event loop's.

It does not know what is computed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from halfreel_runtime.device import Device

# Enough for the scheduler to run the loop at once when both want a core. MemoryStatus while a clip is rendered, two
# cores at a load of 6: median 2.5 to 1.5 ms, 99th percentile 8 to 6 ms.
_NICENESS = 5


def give_way(device: Device) -> None:
    """Lowers this thread's priority where it computes on the CPU; the threads that it starts inherit it.

    For the engine's thread, before torch starts threads of its own. Only Linux knows priorities of threads.
    """
    if device.kind == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError):  # a container may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
