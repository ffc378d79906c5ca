"""The memory of this process, where the model runs on a CPU.

It does not know what the memory is used for: numbers are resident bytes, sampled while work is going on.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import threading
import time

import psutil

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.host_memory import host_memory
from halfreel_runtime.memory_source import Bytes

# Between two samples: short enough for a decoded chunk, long enough to cost under 1 % of a core.
SAMPLE_S = 0.01


class CpuMemorySource:
    """Resident bytes of this process; peaks are seen by a thread that samples only while work is going on."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._peak = self._resident()
        self._busy = threading.Event()
        self._thread: threading.Thread | None = None

    def live(self) -> Bytes:
        """Resident bytes, twice: a CPU has no allocator of ours."""
        resident = self._resident()
        return Bytes(resident, resident)

    def held(self) -> int:
        """Resident bytes: the system counts them."""
        return self._resident()

    def window_peak(self) -> Bytes:
        """The largest sample of the window, the present moment included."""
        resident = self._resident()
        with self._lock:
            self._peak = max(self._peak, resident)
            return Bytes(self._peak, self._peak)

    def reset_window(self) -> None:
        """Begins a new window."""
        resident = self._resident()
        with self._lock:
            self._peak = resident

    def watch(self, on: bool) -> None:
        """Samples, or rests."""
        if not on:
            self._busy.clear()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
            self._thread.start()
        self._busy.set()

    def observe(self) -> None:
        """Nothing: there is no context beside the process."""

    def fill(self, device: gpu_pb2.DeviceMemory) -> None:
        """The host's memory as the device's."""
        host = host_memory()
        device.device_total_bytes = host.total_bytes
        device.device_used_bytes = host.total_bytes - host.available_bytes
        device.device_free_bytes = host.available_bytes

    def release_cached(self) -> None:
        """Gives free heap pages back to the system, where the C library can."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl and macOS don't
        if trim is not None:
            trim(0)

    def _resident(self) -> int:
        statm = _statm()
        if statm is None:
            return int(self._process.memory_info().rss)
        return int(os.pread(statm, 128, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _sample(self) -> None:
        while True:
            self._busy.wait()
            self.window_peak()
            time.sleep(SAMPLE_S)


@functools.cache
def _statm() -> int | None:
    """Linux's page counts of this process, kept open: read so, they take a tenth of the time that psutil takes.

    A child that was forked must open its own: what its parent opened tells of the parent.
    """
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_statm.cache_clear)
