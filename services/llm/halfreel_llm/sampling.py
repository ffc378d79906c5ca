"""One token from each row of logits, every row by settings of its own.

Knows no text and no grammar but a mask. A draw is a function of its row's logits, its settings, its seed and its place
in the reply alone: the noise is counted, not drawn from a generator, so that no company changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfreel_runtime.errors import Internal

NOT_FINITE = -1  # in place of a token
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class SamplingSettings:
    """How one reply's tokens are picked; all within their limits."""

    temperature: float
    """At least 0; 0 takes the likeliest token."""
    top_p: float
    """Keep the likeliest tokens whose probabilities add up to this; above 0, at most 1."""
    top_k: int
    """Keep this many of the likeliest tokens, and any as likely as the last of them; 0 keeps all."""
    seed: int
    """From 0 to 2^63 - 1."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0 or self.top_k == 1


def pick(logits: Tensor, settings: Sequence[SamplingSettings], places: Sequence[int], allowed: Tensor) -> list[int]:
    """Picks one token a row.

    Args:
        logits: [N, vocabulary], of any float dtype.
        settings: Of each row.
        places: Of each row: which token of its sequence is picked; from 0.
        allowed: The tokens that may be picked, [N or 1, vocabulary], bool; at least one a row.

    Returns:
        The tokens; `NOT_FINITE` for a row whose logits are not.
    """
    with torch.inference_mode():
        rows = logits.float()
        # A sum is finite where all its parts are; checked before the mask, which adds infinities of its own.
        finite = rows.sum(1).isfinite()
        rows = rows.masked_fill(~allowed, -torch.inf)
        if not all(each.greedy for each in settings):
            rows = _filtered(rows, settings) + _noise(rows, settings, places)
        return torch.where(finite, rows.argmax(1), NOT_FINITE).tolist()


def not_finite() -> Internal:
    """Returns what a client hears of a row that is not finite (reason NAN_DETECTED)."""
    return Internal(
        "the model computed numbers that are not finite; a server with precision bf16 or fp32 may not",
        reason="NAN_DETECTED",
    )


def noise_key(seed: int, place: int) -> int:
    """Returns 64 bits that decide all the noise of one token's draw: SplitMix64 of the seed, the place its counter."""
    value = (seed + 0x9E3779B97F4A7C15 * (place + 1)) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def _filtered(rows: Tensor, settings: Sequence[SamplingSettings]) -> Tensor:
    """Returns the rows over their temperatures, without what top_k and top_p leave out."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=rows.device, dtype=torch.float32)[:, None]

    # The largest is subtracted first, so that a tiny temperature divides to minus infinity and not to NaN.
    rows = (rows - rows.amax(1, keepdim=True)) / column([1.0 if each.greedy else each.temperature for each in settings])
    if all(each.greedy or (each.top_p == 1 and each.top_k == 0) for each in settings):
        return rows
    size = rows.shape[1]
    ordered = rows.sort(1, descending=True).values
    last = torch.tensor([min(each.top_k or size, size) - 1 for each in settings], device=rows.device)[:, None]
    ordered = ordered.masked_fill(ordered < ordered.gather(1, last), -torch.inf)
    probabilities = ordered.softmax(1)
    before = probabilities.cumsum(1) - probabilities
    top_p = column([each.top_p for each in settings])
    # As likely as the last that is kept is likely enough: which of two equals is left out would be chance.
    left_out = ((before >= top_p) & (top_p < 1)) | ordered.isinf()
    least = ordered.masked_fill(left_out, torch.inf).amin(1, keepdim=True)
    return rows.masked_fill(rows < least, -torch.inf)


def _noise(rows: Tensor, settings: Sequence[SamplingSettings], places: Sequence[int]) -> Tensor:
    """Returns noise whose sum with logits is largest where a draw from their softmax falls (the Gumbel trick).

    Each number is a hash of the row's key and the token: two rounds of MurmurHash3's finaliser.
    """
    keys = [0 if each.greedy else noise_key(each.seed, place) for each, place in zip(settings, places, strict=True)]
    low = torch.tensor([key & _WORD for key in keys], device=rows.device)[:, None]
    high = torch.tensor([key >> 32 for key in keys], device=rows.device)[:, None]
    bits = _mixed(_mixed(torch.arange(rows.shape[1], device=rows.device) ^ low) ^ high)
    uniform = _uniform(bits)
    drawn = torch.tensor([not each.greedy for each in settings], device=rows.device)[:, None]
    return torch.where(drawn, -(-uniform.log()).log(), 0.0)


def _uniform(bits: Tensor) -> Tensor:
    """Returns numbers between 0 and 1, neither of them included, from 32 bits each.

    23 of them: with 24 and the half, float32 would round the largest number up to 1, whose noise is infinite.
    """
    return ((bits >> 9).float() + 0.5) * 2.0**-23


def _mixed(word: Tensor) -> Tensor:
    """Mixes 32 bits kept in 64."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & _WORD
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & _WORD
    return word ^ (word >> 16)
