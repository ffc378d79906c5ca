"""One matrix of the network as it is kept: in the model's arithmetic, or in 8 bits with a scale a row.

Knows no layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Numbers of a matrix that are in the model's arithmetic at once while it is kept in 8 bits: 32 MiB of FP16. A larger
# matrix is made 8 bits, and is multiplied by many rows, slice after slice: ChatGLM3-6B's head in FP32 would be 1 GiB.
_SLICE_NUMBERS = 2**24


class Weight(nn.Module):
    """A matrix [out, in], with a bias or without.

    Attributes:
        values: in the model's arithmetic, or int8.
        bias: [out], in the model's arithmetic, or None.
        scales: [out], in FP32, where `values` are int8; else None.
        dtype: the model's arithmetic.
    """

    values: Tensor
    bias: Tensor | None
    scales: Tensor | None

    def __init__(self, values: Tensor, bias: Tensor | None) -> None:
        """Takes the matrix in the model's arithmetic."""
        super().__init__()
        self.dtype = values.dtype
        self.register_buffer("values", values)
        self.register_buffer("bias", bias)
        self.register_buffer("scales", None)

    @property
    def byte_count(self) -> int:
        """Bytes that are read to apply it once."""
        parts = [self.values, *(part for part in (self.bias, self.scales) if part is not None)]
        return sum(part.numel() * part.element_size() for part in parts)

    def quantise(self, device: torch.device | None = None) -> None:
        """Keeps the values in 8 bits: each row is divided by its largest magnitude over 127, and rounded.

        Args:
            device: Where they are kept; where they are, if left out.
        """
        device = device or self.values.device
        values = torch.empty(self.values.shape, dtype=torch.int8, device=device)
        scales = torch.empty(len(values), device=device)
        for rows in self._slices():
            part = self.values[rows].to(device)
            scales[rows] = part.abs().amax(1).float().clamp_min(1e-8) / 127
            values[rows] = (part.float() / scales[rows, None]).round().clamp(-127, 127).to(torch.int8)
        self.values, self.scales = values, scales

    def rows(self, indices: Tensor) -> Tensor:
        """Returns some rows of the matrix in an arithmetic of 16 or 32 bits, [N, in]: an embedding's."""
        found = F.embedding(indices, self.values)
        if self.scales is None:
            return found
        return (found.float() * self.scales[indices, None]).to(self.dtype)

    def forward(self, rows: Tensor) -> Tensor:
        """Returns rows x the matrix + the bias, [N, out]."""
        if self.scales is None:
            return F.linear(rows, self.values, self.bias)
        product = rows.new_empty((*rows.shape[:-1], len(self.values)))
        for part in self._slices():
            values, scales = self.values[part].to(rows.dtype), self.scales[part].to(rows.dtype)
            torch.mul(F.linear(rows, values), scales, out=product[..., part])
        return product if self.bias is None else product + self.bias

    def _slices(self) -> list[slice]:
        """Returns the rows of each slice."""
        count, size = self.values.shape
        step = max(1, _SLICE_NUMBERS // size)
        return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


def join(*layers: nn.Linear) -> Weight:
    """Puts matrices that share their input one under another; what they were is let go, so that each is kept once."""
    if len(layers) == 1:
        return Weight(layers[0].weight.data, None if layers[0].bias is None else layers[0].bias.data)
    biases = [layer.bias.data for layer in layers if layer.bias is not None]
    joined = Weight(torch.cat([layer.weight.data for layer in layers]), torch.cat(biases) if biases else None)
    for layer in layers:
        layer.weight = layer.bias = None  # the only copy is the joined one
    return joined
