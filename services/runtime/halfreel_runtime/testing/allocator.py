"""torch's caching allocator, as arithmetic: how much a process takes of a card for the tensors that it makes.

The rules are those of c10/cuda/CUDACachingAllocator.cpp (torch 2.11, one stream): sizes in multiples of 512 bytes; two
pools, at most 1 MiB and above; the smallest free block that is large enough; segments of 2 MiB, 20 MiB or whole
multiples of 2 MiB, or expandable ones that grow by 2 and 20 MiB; when the card is full, cached memory is given back and
the allocation tried once more.

It does not know what is allocated.
"""

from __future__ import annotations

from halfreel_runtime.memory_source import Bytes
from halfreel_runtime.testing.block import Block, Pool
from halfreel_runtime.testing.card import SimulatedCard

MIB = 2**20
_ROUND = 512
_SMALL = MIB  # the largest allocation of the pool of small ones
_SMALL_SEGMENT, _LARGE_SEGMENT = 2 * MIB, 20 * MIB
_MIN_LARGE = 10 * MIB  # from here on a segment is as large as its allocation
_ROUND_LARGE = 2 * MIB


class OutOfMemoryError(RuntimeError):
    """The card has no room; named and worded as torch's, by which the engine knows it."""


class SimulatedAllocator:
    """The memory of one process on a card.

    Args:
        card: which it shares with others.
        expandable: as PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.
        context_bytes: what the driver keeps for the process beside.
        limit_bytes: most that it may reserve, as torch.cuda.set_per_process_memory_fraction; 0 for no limit.

    Raises:
        OutOfMemoryError: the card has no room for the context.
    """

    def __init__(
        self, card: SimulatedCard, *, expandable: bool = True, context_bytes: int = 0, limit_bytes: int = 0
    ) -> None:
        self.card = card
        self.context_bytes = context_bytes
        self._expandable = expandable
        self._limit_bytes = limit_bytes
        self._pools = {True: Pool(small=True), False: Pool(small=False)}
        self._used: dict[int, Block] = {}
        self._next_address = 0
        self._live = self._peak = Bytes()
        if not card.take(context_bytes):
            raise self._out_of_memory(context_bytes)

    @property
    def live(self) -> Bytes:
        """Bytes in live tensors, rounded as the allocator rounds them, and bytes held."""
        return self._live

    @property
    def peak(self) -> Bytes:
        """The largest of each since `reset_peak`."""
        return self._peak

    def reset_peak(self) -> None:
        """The peak is what is live."""
        self._peak = self._live

    def allocate(self, size_bytes: int) -> int:
        """Makes a tensor of so many bytes; returns its address, which is what `free` takes.

        Raises:
            OutOfMemoryError: the card has no room, even with nothing cached.
        """
        size = max(_ROUND, -(-size_bytes // _ROUND) * _ROUND)
        pool = self._pools[size <= _SMALL]
        block = self._best(pool, size) or self._grown(pool, size)
        if block is None:
            self.empty_cache()
            block = self._grown(pool, size)
        if block is None:
            raise self._out_of_memory(size_bytes)
        rest = block.size - size
        if rest >= _ROUND if pool.small or self._expandable else rest > _SMALL:
            pool.add(block.cut(size))
        block.used = True
        self._used[block.address] = block
        self._count(allocated=block.size)
        return block.address

    def free(self, address: int) -> None:
        """A tensor is gone; its memory is kept for the next."""
        block = self._used.pop(address)
        block.used = False
        self._count(allocated=-block.size)
        self._join_neighbours(block)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Gives back what no tensor uses: whole segments, and whole granules of expandable ones."""
        for pool in self._pools.values():
            for block in pool.free():
                if block.granule:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self._give(block.size)

    def end(self) -> None:
        """The process is gone, and with it all that it held."""
        self.card.give(self._live.reserved + self.context_bytes)
        self._live = Bytes()
        self.context_bytes = 0

    # Finding memory.

    def _best(self, pool: Pool, size: int) -> Block | None:
        """The free block that fits best: the smallest, or of expandable ones that which can grow to the least."""
        blocks = pool.at_least(size)
        if not blocks:
            return None
        best = blocks[0]
        for block in blocks[1:]:  # as torch does it: stops at the first that is no better
            if not best.granule or _could_be(block) >= _could_be(best):
                break
            best = block
        pool.remove(best)
        return best

    def _grown(self, pool: Pool, size: int) -> Block | None:
        """A block of new memory, or None where there is none."""
        if self._expandable:
            return self._grown_in_place(pool, size)
        segment = _SMALL_SEGMENT if pool.small else _LARGE_SEGMENT
        if size >= _MIN_LARGE:
            segment = -(-size // _ROUND_LARGE) * _ROUND_LARGE
        if not self._take(segment):
            return None
        return Block(self._addresses(segment), segment, pool)

    def _grown_in_place(self, pool: Pool, size: int) -> Block | None:
        block = self._room_to_grow(pool, size)
        if not block.mapped and (mapped := self._map(block, min(block.size, size))) is not None:
            block = mapped
        if not block.mapped:
            return None
        while block.size < size:
            behind = block.after
            assert behind is not None
            mapped = self._map(behind, min(size - block.size, behind.size))
            if mapped is None:
                return None
            block = mapped
        pool.remove(block)
        return block

    def _room_to_grow(self, pool: Pool, size: int) -> Block:
        """The first stretch of unused addresses that is long enough, with the free memory before it."""
        for block in pool.unmapped():
            first = block.before if block.before is not None and not block.before.used else block
            length = 0
            each: Block | None = first
            while length < size and each is not None and not each.used:
                length, each = length + each.size, each.after
            if length >= size:
                return first
        granule = _SMALL_SEGMENT if pool.small else _LARGE_SEGMENT
        # torch sets aside 9/8 of the card's bytes of addresses for each segment.
        length = -(-(self.card.capacity_bytes * 9 // 8) // granule) * granule
        length = max(length, -(-size // granule) * granule)
        block = Block(self._addresses(length), length, pool, granule, mapped=False)
        pool.add(block)
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Puts memory behind the beginning of a block; returns the free block that it is then part of."""
        mapped = -(-size // block.granule) * block.granule
        if not self._take(mapped):
            return None
        pool = block.pool
        pool.remove(block)
        if mapped < block.size:
            pool.add(block.cut(mapped))
        block.mapped = True
        self._join_neighbours(block)
        pool.add(block)
        return block

    def _unmap(self, block: Block) -> None:
        """Takes the memory from behind the whole granules of a free block."""
        granule, end = block.granule, block.address + block.size
        first, last = -(-block.address // granule) * granule, end // granule * granule
        if first >= last:
            return
        pool = block.pool
        pool.remove(block)
        if first > block.address:
            rest = block.cut(first - block.address)
            pool.add(block)
            block = rest
        if last < end:
            pool.add(block.cut(last - block.address))
        block.mapped = False
        self._join_neighbours(block)
        self._give(last - first)
        pool.add(block)

    def _join_neighbours(self, block: Block) -> None:
        for other in (block.before, block.after):
            if other is not None and not other.used and other.mapped == block.mapped:
                other.pool.remove(other)
                block.join(other)

    def _addresses(self, length: int) -> int:
        address = self._next_address
        self._next_address += -(-length // _LARGE_SEGMENT) * _LARGE_SEGMENT
        return address

    # Counting.

    def _take(self, size: int) -> bool:
        if self._limit_bytes and self._live.reserved + size > self._limit_bytes:
            return False
        if not self.card.take(size):
            return False
        self._count(reserved=size)
        return True

    def _give(self, size: int) -> None:
        self.card.give(size)
        self._count(reserved=-size)

    def _count(self, *, allocated: int = 0, reserved: int = 0) -> None:
        self._live = Bytes(self._live.allocated + allocated, self._live.reserved + reserved)
        self._peak = self._peak.max(self._live)

    def _out_of_memory(self, size: int) -> OutOfMemoryError:
        gib = 2**30
        return OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {size / gib:.2f} GiB. GPU 0 has a total capacity of "
            f"{self.card.capacity_bytes / gib:.2f} GiB of which {self.card.free_bytes / gib:.2f} GiB is free."
        )


def _could_be(block: Block) -> int:
    """What an expandable block can grow to."""
    return block.size + (block.after.size if block.after is not None and not block.after.mapped else 0)
