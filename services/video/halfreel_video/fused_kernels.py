"""What lies between the convolutions and products of SVD's blocks, as kernels of our own: each reads its inputs once.

Written in Triton, and compiled at their first use. Pictures have their channels side by side in memory, which is how
tensor cores read; frames of a clip follow one another. Numbers add up in 32 bits. Knows tensors and norms alone;
`fused_plain` holds the same operations in PyTorch's words, and a test holds the two together.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,no-any-unimported,untyped-decorator,import-not-found"
# ruff: noqa: N803 - a kernel's arguments are pointers, numbers and constants of the compiler

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from halfreel_video import fused_plain

__all__ = ["attend_in_time", "blended", "gated", "group_norm", "layer_norm"]

_ROWS = 32  # of a tile: pixels, each with 64 of its channels
_PIXELS = 128  # of one program that only reads and writes
_MOST_FRAMES = 64  # of attention in time: all of a pixel's scores lie in registers


@triton.jit
def _moments(hidden, moments, pixels, channels, chunks, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and sum of squared distances from it, of each channel, over a chunk of an image's pixels.

    Distances are taken from the chunk's first pixel first, so that nothing cancels where the mean is far from 0.
    """
    image, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    base = hidden + image * pixels * channels
    start = chunk * CHUNK
    end = tl.minimum(start + CHUNK, pixels)
    pivot = tl.load(base + start.to(tl.int64) * channels + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, CHUNK, ROWS):
        row = start + first + tl.arange(0, ROWS)
        fits = (row < end)[:, None] & inside[None, :]
        values = tl.load(base + row.to(tl.int64)[:, None] * channels + channel[None, :], mask=fits, other=0.0)
        distance = tl.where(fits, values.to(tl.float32) - pivot[None, :], 0.0)
        total += distance
        squares += distance * distance
    count = (end - start).to(tl.float32)
    mean = tl.sum(total, 0) / count
    place = moments + (image * chunks + chunk) * 2 * channels + channel
    tl.store(place, pivot + mean, mask=inside)
    tl.store(place + channels, tl.sum(squares, 0) - mean * mean * count, mask=inside)


@triton.jit
def _settled(
    moments, shift, weight, bias, factors, frames, chunks, pixels, channels, images, shift_stride, total, epsilon,
    SIZE: tl.constexpr, CHUNK: tl.constexpr, SHIFTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each channel of each image is multiplied by, and what is added then, for one group of one clip."""
    clip, group = tl.program_id(0), tl.program_id(1)
    count = frames * chunks * SIZE
    summed = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < count
        channel = group * SIZE + at % SIZE
        chunk = (at // SIZE) % chunks
        image = clip * frames + at // SIZE // chunks
        rows = tl.minimum(pixels - chunk * CHUNK, CHUNK).to(tl.float32)
        mean = tl.load(moments + (image * chunks + chunk) * 2 * channels + channel, mask=inside, other=0.0)
        if SHIFTED:
            mean += tl.load(shift + image * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
        summed += tl.where(inside, mean * rows, 0.0)
    center = tl.sum(summed, 0) / total
    summed = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < count
        channel = group * SIZE + at % SIZE
        chunk = (at // SIZE) % chunks
        image = clip * frames + at // SIZE // chunks
        rows = tl.minimum(pixels - chunk * CHUNK, CHUNK).to(tl.float32)
        place = moments + (image * chunks + chunk) * 2 * channels + channel
        mean = tl.load(place, mask=inside, other=0.0)
        if SHIFTED:
            mean += tl.load(shift + image * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
        squares = tl.load(place + channels, mask=inside, other=0.0)
        summed += tl.where(inside, squares + rows * (mean - center) * (mean - center), 0.0)
    scale = tl.rsqrt(tl.sum(summed, 0) / total + epsilon)
    for start in range(0, frames * SIZE, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < frames * SIZE
        channel = group * SIZE + at % SIZE
        image = clip * frames + at // SIZE
        factor = scale * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
        offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - center * factor
        if SHIFTED:
            offset += factor * tl.load(shift + image * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(factors + image * channels + channel, factor, mask=inside)
        tl.store(factors + (images + image) * channels + channel, offset, mask=inside)


@triton.jit
def _scaled(
    hidden, factors, out, pixels, channels, images,
    SILU: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    factor = tl.load(factors + image * channels + channel, mask=inside, other=0.0)
    offset = tl.load(factors + (images + image) * channels + channel, mask=inside, other=0.0)
    for first in range(0, CHUNK, ROWS):
        row = chunk * CHUNK + first + tl.arange(0, ROWS)
        fits = (row < pixels)[:, None] & inside[None, :]
        place = (image * pixels + row.to(tl.int64))[:, None] * channels + channel[None, :]
        values = tl.load(hidden + place, mask=fits, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
        if SILU:
            values = values / (1.0 + tl.exp(-values))
        tl.store(out + place, values.to(out.dtype.element_ty), mask=fits)


def group_norm(
    hidden: Tensor, norm: Any, *, frames: int = 1, silu: bool = False, shift: Tensor | None = None
) -> Tensor:
    """Normalises groups of channels.

    Args:
        hidden: (images, channels, height, width), channels last in memory, as all pictures here.
        norm: the torch.nn.GroupNorm.
        frames: images that have their statistics in common; their number divides that of the images.
        silu: of the result.
        shift: (images or 1, channels), added before.
    """
    images, channels, height, width = hidden.shape
    pixels, size = height * width, channels // norm.num_groups
    chunk = 512 if pixels <= 16384 else 4096
    chunks, block = triton.cdiv(pixels, chunk), _block(channels)
    moments = torch.empty((images, chunks, 2, channels), device=hidden.device, dtype=torch.float32)
    factors = torch.empty((2, images, channels), device=hidden.device, dtype=torch.float32)
    _moments[(images, chunks, triton.cdiv(channels, block))](
        hidden, moments, pixels, channels, chunks, CHUNK=chunk, ROWS=_ROWS, BLOCK=block, num_warps=4
    )
    _settled[(images // frames, norm.num_groups)](
        moments, moments if shift is None else shift, norm.weight, norm.bias, factors,
        frames, chunks, pixels, channels, images, _stride(shift), float(frames * pixels * size), norm.eps,
        SIZE=size, CHUNK=chunk, SHIFTED=shift is not None, BLOCK=1024, num_warps=4,
    )  # fmt: skip
    out = torch.empty_like(hidden)
    _scaled[(images, triton.cdiv(pixels, _PIXELS), triton.cdiv(channels, block))](
        hidden, factors, out, pixels, channels, images, SILU=silu, CHUNK=_PIXELS, ROWS=_ROWS, BLOCK=block, num_warps=4
    )
    return out


@triton.jit
def _blended(
    hidden, other, weight, shift, out, pixels, channels, shift_stride,
    WEIGHTED: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    offset = tl.load(shift + image * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
    factor = 1.0
    if WEIGHTED:
        factor = tl.load(weight).to(tl.float32)
    for first in range(0, CHUNK, ROWS):
        row = chunk * CHUNK + first + tl.arange(0, ROWS)
        fits = (row < pixels)[:, None] & inside[None, :]
        place = (image * pixels + row.to(tl.int64))[:, None] * channels + channel[None, :]
        values = tl.load(hidden + place, mask=fits, other=0.0).to(tl.float32)
        values += factor * tl.load(other + place, mask=fits, other=0.0).to(tl.float32) + offset[None, :]
        tl.store(out + place, values.to(out.dtype.element_ty), mask=fits)


def blended(hidden: Tensor, other: Tensor, *, shift: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns hidden + weight x other + shift.

    Args:
        hidden: (images, channels, height, width), channels last in memory; `other` as well.
        other: See `hidden`.
        shift: (images or 1, channels).
        weight: one number; None for 1.
    """
    images, channels, height, width = hidden.shape
    pixels, block = height * width, _block(channels)
    out = torch.empty_like(hidden)
    _blended[(images, triton.cdiv(pixels, _PIXELS), triton.cdiv(channels, block))](
        hidden, other, shift if weight is None else weight, shift, out, pixels, channels, _stride(shift),
        WEIGHTED=weight is not None, CHUNK=_PIXELS, ROWS=_ROWS, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _layer_norm(
    hidden, other, shift, weight, bias, out, count, size, each, epsilon,
    ADDED: tl.constexpr, SHIFTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = at < size
    fits = (row < count)[:, None] & inside[None, :]
    place = row[:, None] * size + at[None, :]
    values = tl.load(hidden + place, mask=fits, other=0.0).to(tl.float32)
    if ADDED:
        values += tl.load(other + place, mask=fits, other=0.0).to(tl.float32)
    if SHIFTED:
        values += tl.load(shift + (row // each)[:, None] * size + at[None, :], mask=fits, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / size
    distance = tl.where(fits, values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(distance * distance, 1) / size + epsilon)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    normed = distance * scale[:, None] * factor[None, :] + offset[None, :]
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=fits)


def layer_norm(hidden: Tensor, norm: Any, *, shift: Tensor | None = None, other: Tensor | None = None) -> Tensor:
    """Normalises hidden + other + shift.

    Args:
        hidden: (tokens, channels); `other` as well.
        norm: the torch.nn.LayerNorm.
        shift: (parts, channels): each is of as many tokens, one after the other.
        other: See `hidden`.
    """
    count, size = hidden.shape
    block = triton.next_power_of_2(size)
    rows = max(1, 2048 // block)
    out = torch.empty_like(hidden)
    _layer_norm[(triton.cdiv(count, rows),)](
        hidden, hidden if other is None else other, hidden if shift is None else shift, norm.weight, norm.bias, out,
        count, size, 1 if shift is None else count // len(shift), norm.eps,
        ADDED=other is not None, SHIFTED=shift is not None, ROWS=rows, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _gated(both, out, count, size, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    fits = (row < count)[:, None] & (at < size)[None, :]
    place = both + row[:, None] * 2 * size + at[None, :]
    values = tl.load(place, mask=fits, other=0.0).to(tl.float32)
    gate = tl.load(place + size, mask=fits, other=0.0).to(tl.float32)
    values = values * gate * 0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    tl.store(out + row[:, None] * size + at[None, :], values.to(out.dtype.element_ty), mask=fits)


def gated(both: Tensor) -> Tensor:
    """Returns first half x gelu(second half) of each row; `both` is (tokens, 2 x channels)."""
    count, size = both.shape[0], both.shape[1] // 2
    out = torch.empty((count, size), device=both.device, dtype=both.dtype)
    _gated[(triton.cdiv(count, 8), triton.cdiv(size, 256))](both, out, count, size, ROWS=8, BLOCK=256, num_warps=4)
    return out


@triton.jit
def _attend_in_time(
    joined, out, frames, pixels, scaling,
    HEADS: tl.constexpr, SIZE: tl.constexpr, FRAMES: tl.constexpr,
):  # fmt: skip
    """One head of one pixel: its frames look at each other."""
    program = tl.program_id(0)
    head, place = program % HEADS, program // HEADS
    clip, pixel = place // pixels, place % pixels
    frame, at = tl.arange(0, FRAMES), tl.arange(0, SIZE)
    inside = frame < frames
    token = (clip * frames + frame).to(tl.int64) * pixels + pixel
    query_at = joined + token[:, None] * (3 * HEADS * SIZE) + head * SIZE + at[None, :]
    query = tl.load(query_at, mask=inside[:, None], other=0.0)
    key = tl.load(query_at + HEADS * SIZE, mask=inside[:, None], other=0.0)
    value = tl.load(query_at + 2 * HEADS * SIZE, mask=inside[:, None], other=0.0)
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
    score = tl.where(inside[None, :], score, float("-inf"))
    weight = tl.exp(score - tl.max(score, 1)[:, None])
    total = tl.sum(weight, 1)
    seen = tl.dot(weight.to(value.dtype), value, input_precision="ieee") / total[:, None]
    out_at = out + token[:, None] * (HEADS * SIZE) + head * SIZE + at[None, :]
    tl.store(out_at, seen.to(out.dtype.element_ty), mask=inside[:, None])


def attend_in_time(joined: Tensor, *, clips: int, frames: int, heads: int) -> Tensor:
    """Attends from each frame of a pixel to all of its frames.

    Args:
        joined: (clips x frames x pixels, 3 x heads x head size): query, key and value.
        clips: of it.
        frames: of a clip.
        heads: of each of the three.

    Returns:
        (clips x frames x pixels, heads x head size).
    """
    count, size = joined.shape[0], joined.shape[1] // (3 * heads)
    if frames > _MOST_FRAMES or size < 16 or size & (size - 1):
        return fused_plain.attend_in_time(joined, clips=clips, frames=frames, heads=heads)
    out = torch.empty((count, heads * size), device=joined.device, dtype=joined.dtype)
    _attend_in_time[(count // frames * heads,)](
        joined, out, frames, count // (clips * frames), size**-0.5,
        HEADS=heads, SIZE=size, FRAMES=max(16, triton.next_power_of_2(frames)), num_warps=2,
    )  # fmt: skip
    return out


def _block(channels: int) -> int:
    """Channels of a tile: 64 halves are a line of the cache."""
    return 64 if channels % 64 == 0 else 32


def _stride(shift: Tensor | None) -> int:
    """From one image's shift to the next one's: none where one is for all."""
    return 0 if shift is None or len(shift) == 1 else shift.shape[1]
