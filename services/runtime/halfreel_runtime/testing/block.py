"""Blocks of memory in the order of their addresses, and pools that find the best of them.

It does not know when to split or join them (`allocator`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass


@dataclass(eq=False)
class Block:
    """A stretch of one segment's addresses; its neighbours are the stretches before and after it."""

    address: int
    size: int
    pool: Pool
    granule: int = 0  # of an expandable segment; 0 in one of fixed size
    mapped: bool = True  # whether there is memory behind the addresses
    used: bool = False
    before: Block | None = None
    after: Block | None = None

    def cut(self, size: int) -> Block:
        """Shortens the block to a size; returns what is left of it, which lies behind it."""
        rest = Block(self.address + size, self.size - size, self.pool, self.granule, self.mapped)
        rest.before, rest.after = self, self.after
        if self.after is not None:
            self.after.before = rest
        self.after, self.size = rest, size
        return rest

    def join(self, other: Block) -> None:
        """Takes a neighbour in."""
        if other is self.before:
            self.address, self.before = other.address, other.before
            if self.before is not None:
                self.before.after = self
        else:
            self.after = other.after
            if self.after is not None:
                self.after.before = self
        self.size += other.size


class Pool:
    """The unused blocks of one kind of allocations: those with memory by size, those without by address."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self._free: list[tuple[int, int, Block]] = []
        self._unmapped: list[tuple[int, Block]] = []

    def add(self, block: Block) -> None:
        """An unused block."""
        if block.mapped:
            insort(self._free, (block.size, block.address, block))
        else:
            insort(self._unmapped, (block.address, block))

    def remove(self, block: Block) -> None:
        """It is used, or has changed."""
        if block.mapped:
            del self._free[bisect_left(self._free, (block.size, block.address))]
        else:
            del self._unmapped[bisect_left(self._unmapped, (block.address,))]

    def at_least(self, size: int) -> list[Block]:
        """The blocks with memory that are large enough, the smallest first."""
        return [block for _, _, block in self._free[bisect_left(self._free, (size,)) :]]

    def free(self) -> list[Block]:
        """All with memory."""
        return [block for _, _, block in self._free]

    def unmapped(self) -> list[Block]:
        """All without, by address."""
        return [block for _, block in self._unmapped]
