"""A GPU's memory as its driver keeps it: so many bytes, taken and given back by whichever process.

It does not know what a process does with them (`allocator`).
"""

from __future__ import annotations

import threading


class SimulatedCard:
    """So many bytes.

    Args:
        capacity_bytes: what there is.
        others_bytes: what processes hold that are not simulated.
    """

    def __init__(self, capacity_bytes: int, *, others_bytes: int = 0) -> None:
        self.capacity_bytes = capacity_bytes
        self.others_bytes = others_bytes
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What all processes hold."""
        return self._taken + self.others_bytes

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return max(0, self.capacity_bytes - self.used_bytes)

    def take(self, size_bytes: int) -> bool:
        """Takes so many bytes, or none: whether there were so many."""
        with self._lock:
            if size_bytes > self.free_bytes:
                return False
            self._taken += size_bytes
            return True

    def give(self, size_bytes: int) -> None:
        """Gives bytes back."""
        with self._lock:
            assert size_bytes <= self._taken, f"{size_bytes} bytes given back of {self._taken} that were taken"
            self._taken -= size_bytes
