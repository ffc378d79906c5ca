"""What memory was in the last minutes: one sample a second, and the largest figures of the last 60 s.

It does not know what is sampled; somebody with a clock adds to it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.memory_source import Bytes

SAMPLE_S = 1.0
KEPT_SAMPLE_COUNT = 600
RECENT_S = 60


class RecentPeak:
    """The largest figures of the last 60 s, kept a second at a time."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, Bytes]] = deque()

    def add(self, now_s: float, peak: Bytes) -> None:
        """Figures seen up to now."""
        second = int(now_s)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1].max(peak))
        else:
            self._seconds.append((second, peak))
        self._forget(now_s)

    def peak(self, now_s: float, present: Bytes) -> Bytes:
        """The largest of the last 60 s, the present figures included."""
        self._forget(now_s)
        for _, peak in self._seconds:
            present = present.max(peak)
        return present

    def clear(self) -> None:
        """Forgets all."""
        self._seconds.clear()

    def _forget(self, now_s: float) -> None:
        while self._seconds and self._seconds[0][0] + 1 <= now_s - RECENT_S:
            self._seconds.popleft()


class MemoryHistory:
    """The last samples, oldest first; adding and reading may be in different threads.

    Args:
        kept_count: samples that are kept; 600 at one a second are ten minutes.
    """

    def __init__(self, kept_count: int = KEPT_SAMPLE_COUNT) -> None:
        self._samples: deque[gpu_pb2.MemorySample] = deque(maxlen=kept_count)
        self._lock = threading.Lock()

    def add(self, sample: gpu_pb2.MemorySample) -> None:
        """The newest sample; the oldest leaves where there are as many as are kept."""
        with self._lock:
            self._samples.append(sample)

    def samples(self) -> list[gpu_pb2.MemorySample]:
        """All that are kept, oldest first."""
        with self._lock:
            return list(self._samples)


def every(interval_s: float, method: Callable[[], None], name: str) -> threading.Event:
    """Calls a bound method from a thread of its own for as long as its object lives.

    Args:
        interval_s: between two calls.
        method: must not wait; its object is not kept alive by the thread.
        name: of the thread.

    Returns:
        What ends it sooner, when set.
    """
    end = threading.Event()
    reference = weakref.WeakMethod(method)

    def run() -> None:
        while not end.wait(interval_s):
            alive = reference()
            if alive is None:
                return
            alive()
            del alive

    threading.Thread(target=run, name=name, daemon=True).start()
    return end
