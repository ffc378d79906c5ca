"""Picks one token of each row on the GPU, without sorting and without the host: `sampling` as a kernel.

What top_k and top_p leave out is found by bisection over the 16 bits of a half-precision logit, which is exact. The
noise is the same hash as on a CPU. Knows tensors alone.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,no-any-unimported,untyped-decorator,import-not-found"
# ruff: noqa: N803 - a kernel's arguments are pointers, numbers and constants of the compiler

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _mixed(word):
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    return word ^ (word >> 16)


@triton.jit
def _rank(logit):
    """A half-precision number's bits as an integer of the same order."""
    bits = logit.to(tl.int16, bitcast=True).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFF, bits)


@triton.jit
def _mass(logits, size, least, largest, temperature, COUNTED: tl.constexpr, BLOCK: tl.constexpr):
    """How many logits rank at least `least`, or what their exponentials add up to."""
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, size, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        logit = tl.load(logits + at, mask=at < size, other=float("-inf"))
        kept = _rank(logit) >= least
        if COUNTED:
            total += tl.where(kept, 1.0, 0.0)
        else:
            total += tl.where(kept, tl.exp((logit.to(tl.float32) - largest) / temperature), 0.0)
    return tl.sum(total, 0)


@triton.jit
def _pick(
    logits, slots, lengths, tokens, allowed, masks, masked, temperatures, top_ps, top_ks, seeds, picked,
    size, word_count,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    temperature = tl.load(temperatures + slot)
    top_p = tl.load(top_ps + slot)
    top_k = tl.load(top_ks + slot)
    own_mask = tl.load(masked + slot)
    logits += row.to(tl.int64) * size
    masks += slot * word_count
    broken = tl.zeros((BLOCK,), tl.int32)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    which = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, size, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < size
        logit = tl.load(logits + at, mask=inside, other=0.0)
        wide = logit.to(tl.float32)
        broken |= ((wide != wide) | (tl.abs(wide) == float("inf"))).to(tl.int32)
        word = tl.load(allowed + at // 32, mask=inside, other=0)
        word &= tl.load(masks + at // 32, mask=inside & (own_mask != 0), other=-1)
        fits = inside & (((word >> (at % 32)) & 1) != 0)
        wide = tl.where(fits, wide, float("-inf"))
        tl.store(logits + at, wide.to(logit.dtype), mask=inside)
        better = wide > best
        best = tl.where(better, wide, best)
        which = tl.where(better, at, which)
    largest = tl.max(best, 0)
    token = tl.min(tl.where(best == largest, which, 2147483647), 0)
    tl.debug_barrier()
    if temperature > 0:
        least = tl.full((), -32768, tl.int32)
        if (top_k > 0) & (top_k < size):
            low, high = tl.full((), -32768, tl.int32), tl.full((), 32767, tl.int32)
            while low < high:  # the highest rank from which on there are still so many
                middle = (low + high + 1) >> 1
                enough = _mass(logits, size, middle, largest, temperature, True, BLOCK) >= top_k
                low = tl.where(enough, middle, low)
                high = tl.where(enough, high, middle - 1)
            least = low
        if top_p < 1:
            wanted = top_p * _mass(logits, size, least, largest, temperature, False, BLOCK)
            low, high = least, tl.full((), 32767, tl.int32)
            while low < high:
                middle = (low + high + 1) >> 1
                enough = _mass(logits, size, middle, largest, temperature, False, BLOCK) >= wanted
                low = tl.where(enough, middle, low)
                high = tl.where(enough, high, middle - 1)
            least = low
        place = tl.load(lengths + slot).to(tl.uint64)
        key = tl.load(seeds + slot).to(tl.uint64) + 0x9E3779B97F4A7C15 * (place + 1)
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9
        key = (key ^ (key >> 27)) * 0x94D049BB133111EB
        key = key ^ (key >> 31)
        low_key, high_key = (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32)
        best = tl.full((BLOCK,), float("-inf"), tl.float32)
        which = tl.zeros((BLOCK,), tl.int32)
        for begin in range(0, size, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            logit = tl.load(logits + at, mask=at < size, other=float("-inf"))
            bits = _mixed(_mixed(at.to(tl.uint32) ^ low_key) ^ high_key)
            uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23; see sampling._uniform
            drawn = (logit.to(tl.float32) - largest) / temperature - tl.log(-tl.log(uniform))
            drawn = tl.where((_rank(logit) >= least) & (logit > float("-inf")), drawn, float("-inf"))
            better = drawn > best
            best = tl.where(better, drawn, best)
            which = tl.where(better, at, which)
        highest = tl.max(best, 0)
        token = tl.min(tl.where(best == highest, which, 2147483647), 0)
    sound = tl.max(broken, 0) == 0
    tl.store(tokens + slot, tl.where(sound, token, 0).to(tl.int64))
    tl.store(picked + row, tl.where(sound, token, -1).to(tl.int64))


def pick(
    logits: Tensor,
    slots: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    allowed: Tensor,
    masks: Tensor,
    masked: Tensor,
    temperatures: Tensor,
    top_ps: Tensor,
    top_ks: Tensor,
    seeds: Tensor,
    picked: Tensor,
) -> None:
    """Picks a token for each row of logits, into `picked` and into its slot's place of `tokens`.

    Args:
        logits: [N, vocabulary], FP16 or BF16; what is not allowed becomes minus infinity.
        slots: [N] int64; the others but `allowed` and `picked` are by slot.
        lengths: Tokens that each slot holds: the place of the draw.
        tokens: The token picked last.
        allowed: [vocabulary / 32] int32: tokens that may ever be picked, one bit each.
        masks: [slots, vocabulary / 32] int32: what a grammar allows now.
        masked: Whether there is a grammar; int32.
        temperatures: 0 takes the likeliest.
        top_ps: See `SamplingSettings`; so `top_ks` and `seeds`.
        top_ks: See above.
        seeds: See above.
        picked: [N] int64; `NOT_FINITE` for a row that was not.
    """
    _pick[(len(logits),)](
        logits, slots, lengths, tokens, allowed, masks, masked, temperatures, top_ps, top_ks, seeds, picked,
        logits.shape[1], masks.shape[1],
        BLOCK=min(4096, triton.next_power_of_2(logits.shape[1])), num_warps=16,
    )  # fmt: skip
