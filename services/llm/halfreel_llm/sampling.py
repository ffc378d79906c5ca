"""One token from one row of logits.

Knows no text and no grammar but a mask. All of it stays on the device; one number a token crosses to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfreel_runtime.errors import Internal

_NOT_FINITE = -1  # in place of a token


class Sampler:
    """Picks the tokens of one reply. The same settings and seed pick the same tokens from the same logits."""

    def __init__(self, *, temperature: float, top_p: float, top_k: int, seed: int, device: torch.device) -> None:
        """Takes the settings of one request, already checked.

        Args:
            temperature: At least 0; 0 takes the likeliest token.
            top_p: Keep the likeliest tokens whose probabilities add up to this; above 0, at most 1.
            top_k: Keep this many of the likeliest tokens; 0 keeps all.
            seed: From 0 to 2^63 - 1.
            device: Where the logits are.
        """
        self._temperature = temperature
        self._top_p = top_p
        self._top_k = top_k
        self._generator = torch.Generator(device).manual_seed(seed)

    def pick(self, logits: Tensor, allowed: Tensor) -> int:
        """Picks one token.

        Args:
            logits: One row, [vocabulary], of any float dtype.
            allowed: The tokens that may be picked, [vocabulary], bool; at least one.

        Raises:
            Internal: The logits are not finite (reason NAN_DETECTED).
        """
        with torch.inference_mode():
            row = logits.float()
            # A sum is finite where all its parts are; checked before the mask, which adds infinities of its own.
            finite = row.sum().isfinite()
            row = row.masked_fill(~allowed, -torch.inf)
            choice = row.argmax() if self._temperature == 0 else self._draw(row)
            token_id = int(torch.where(finite, choice, _NOT_FINITE))
        if token_id == _NOT_FINITE:
            raise Internal(
                "the model computed numbers that are not finite; a server with precision bf16 or fp32 may not",
                reason="NAN_DETECTED",
            )
        return token_id

    def _draw(self, row: Tensor) -> Tensor:
        kept, token_ids = row.topk(min(self._top_k, len(row)) or len(row))
        # The largest is subtracted first, so that a tiny temperature divides to minus infinity and not to NaN.
        probabilities = ((kept - kept[0]) / self._temperature).softmax(0)
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities.masked_fill(before >= self._top_p, 0.0)
        # The largest of p/q, q exponential, is a draw from p, as in torch.multinomial, without its check on the host.
        noise = torch.empty_like(probabilities).exponential_(generator=self._generator)
        noise = noise.clamp_min(torch.finfo(noise.dtype).tiny)  # a draw may round to 0, and 0/0 would win
        return token_ids[(probabilities / noise).argmax()]
