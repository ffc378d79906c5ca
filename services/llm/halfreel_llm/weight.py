"""One matrix of the network as it is kept: in the model's arithmetic, or in 8 bits with a scale a row.

Knows no layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Weight(nn.Module):
    """A matrix [out, in], with a bias or without.

    Attributes:
        values: in the model's arithmetic, or int8.
        bias: [out], in the model's arithmetic, or None.
        scales: [out], in FP32, where `values` are int8; else None.
    """

    values: Tensor
    bias: Tensor | None
    scales: Tensor | None

    def __init__(self, values: Tensor, bias: Tensor | None) -> None:
        """Takes the matrix in the model's arithmetic."""
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("bias", bias)
        self.register_buffer("scales", None)

    @property
    def byte_count(self) -> int:
        """Bytes that are read to apply it once."""
        parts = [self.values, *(part for part in (self.bias, self.scales) if part is not None)]
        return sum(part.numel() * part.element_size() for part in parts)

    def quantise(self) -> None:
        """Keeps the values in 8 bits: each row is divided by its largest magnitude over 127, and rounded."""
        scales = self.values.abs().amax(1).float().clamp_min(1e-8) / 127
        self.values = (self.values.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.scales = scales

    def forward(self, rows: Tensor) -> Tensor:
        """Returns rows x the matrix + the bias, [N, out]."""
        if self.scales is None:
            return F.linear(rows, self.values, self.bias)
        product = F.linear(rows, self.values.to(rows.dtype)) * self.scales.to(rows.dtype)
        return product if self.bias is None else product + self.bias


def join(*layers: nn.Linear) -> Weight:
    """Puts matrices that share their input one under another; what they were is let go, so that each is kept once."""
    if len(layers) == 1:
        return Weight(layers[0].weight.data, None if layers[0].bias is None else layers[0].bias.data)
    biases = [layer.bias.data for layer in layers if layer.bias is not None]
    joined = Weight(torch.cat([layer.weight.data for layer in layers]), torch.cat(biases) if biases else None)
    for layer in layers:
        layer.weight = layer.bias = None  # the only copy is the joined one
    return joined
