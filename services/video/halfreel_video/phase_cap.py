"""Holds a phase to the bytes that its plan has, on a GPU: torch's allocator then uses again what it holds.

Left alone it asks the driver for more wherever no free piece is large enough: decoding 8 frames of SVD-XT held 12.6 GiB
beside the weights on an H200 while 9.0 were in use. Held to 9.1 GiB it gives free pieces back and maps them anew where
they are needed, which took 3 % of the time. Knows neither plans nor phases.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from halfreel_runtime.failures import release_frames
from halfreel_video.shortage import is_shortage

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class PhaseCap:
    """The cap of one device's allocator; used by the engine's thread alone."""

    def __init__(self, device: torch.device) -> None:
        """Sets nothing; on a CPU nothing is ever set."""
        self._device = device
        self._size_bytes = 0
        self._before: float | None = None  # the share of the device that was allowed, while there is a cap

    @contextmanager
    def at(self, size_bytes: int) -> Iterator[None]:
        """Lets the allocator hold so many bytes at most, until the block ends or `lift` is called.

        Args:
            size_bytes: weights and all else included; 0 sets no cap.
        """
        if self._device.type == "cuda" and size_bytes > 0:
            total_bytes = torch.cuda.get_device_properties(self._device).total_memory
            before = torch.cuda.get_per_process_memory_fraction(self._device)  # a server's budget
            if size_bytes < before * total_bytes:
                self._before, self._size_bytes = before, size_bytes
                torch.cuda.set_per_process_memory_fraction(size_bytes / total_bytes, self._device)
        try:
            yield
        finally:
            self.lift()

    def lift(self) -> bool:
        """Allows again what was allowed before; tells whether there was a cap."""
        before, self._before = self._before, None
        if before is not None:
            torch.cuda.set_per_process_memory_fraction(before, self._device)
        return before is not None

    def give_way(self) -> bool:
        """As `lift`, where memory ran out under the cap: the plan was too low, which the log says."""
        was_held = self.lift()
        if was_held:
            _logger.warning("plan_too_low", extra={"planned_bytes": self._size_bytes})
        return was_held

    def run(self, work: Callable[[], T]) -> T:
        """Does a piece of work; where the cap was too low for it, again without.

        Raises:
            torch.OutOfMemoryError: also without.
        """
        try:
            return work()
        except Exception as error:
            if not is_shortage(error) or not self.give_way():
                raise
            release_frames(error)
        torch.cuda.empty_cache()
        return work()
