"""A model on a simulated card: it takes memory for its weights and for its requests, and can sleep.

It computes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from halfreel_runtime.testing.allocator import SimulatedAllocator


class SimulatedModel:
    """A `SleepingModel` whose weights are so many tensors of one size.

    Args:
        allocator: of its process.
        weight_bytes: of all of them.
        tensor_count: how many they are.

    Raises:
        OutOfMemoryError: the card has no room for them.
    """

    def __init__(self, allocator: SimulatedAllocator, weight_bytes: int, *, tensor_count: int = 50) -> None:
        self._allocator = allocator
        self._sizes = [weight_bytes // tensor_count] * tensor_count
        self._addresses: list[int] = []
        self.sleep_count = 0
        self.wake()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(self._sizes)

    @property
    def awake(self) -> bool:
        """Whether the weights are on the card."""
        return bool(self._addresses)

    def prepare_sleep(self) -> None:
        """Nothing."""

    def sleep(self) -> None:
        """Gives the weights' memory back."""
        for address in self._addresses:
            self._allocator.free(address)
        self._addresses.clear()
        self._allocator.empty_cache()
        self.sleep_count += 1

    def wake(self) -> None:
        """Takes memory for the weights.

        Raises:
            OutOfMemoryError: the card has no room for all of them; none is on it.
        """
        try:
            for size in self._sizes:
                self._addresses.append(self._allocator.allocate(size))
        except BaseException:
            for address in self._addresses:
                self._allocator.free(address)
            self._addresses.clear()
            self._allocator.empty_cache()
            raise

    @contextlib.contextmanager
    def activations(self, *sizes: int) -> Iterator[None]:
        """The memory of a request, while it runs.

        Raises:
            OutOfMemoryError: the card has no room for it.
        """
        assert self.awake, "a request runs on a model that sleeps"
        addresses: list[int] = []
        try:
            for size in sizes:
                addresses.append(self._allocator.allocate(size))  # noqa: PERF401 - what it has got is freed if it fails
            yield
        finally:
            for address in addresses:
                self._allocator.free(address)
