"""The network's arithmetic on a GPU: the same sums as `Network`, in few kernels, with no word to the host.

For one row, and so for one reply, every product takes the norm before it and the addition after it along, and is as
fast as the memory gives the weights. Knows no reply and no graph.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from halfreel_llm.network import Layer, Network
from halfreel_llm.weight import Weight

# For 2 to 64 rows cuBLAS reads a matrix as fast as our own product (within 5 % on an H100). For weights in 8 bits it
# has none; they are made 16 bits for it where the rows are many.
_FEW_ROWS_INT8 = 128


class Kernels(Protocol):
    """The operations; see `kernels`."""

    def normed(self, hidden: Tensor, norm: Tensor, epsilon: float, delta: Tensor | None = None) -> Tensor:
        """See `kernels.normed`."""

    def gated(self, both: Tensor) -> Tensor:
        """See `kernels.gated`."""

    def vector_product(
        self,
        row: Tensor,
        weight: Weight,
        *,
        norm: Tensor | None = None,
        epsilon: float = 0.0,
        residual: Tensor | None = None,
        gated: bool = False,
        ahead: Tensor | None = None,
    ) -> Tensor:
        """See `kernels.vector_product`."""

    def few_products(self, rows: Tensor, weight: Weight) -> Tensor:
        """See `kernels.few_products`."""


class FusedRows(Protocol):
    """The tokens of one step: as `Rows`, but that they turn the heads themselves."""

    def attend(self, layer: int, joined: Tensor, window: int | None) -> Tensor:
        """Keeps keys and values, and attends; see `kernels.attend`.

        Args:
            layer: Its number.
            joined: [N, heads + 2 x key heads, head size]: query, key and value, not rotated.
            window: See `Rows.attend`.

        Returns:
            [N, heads x head size].
        """


class FusedNetwork:
    """Runs a network's weights with kernels of our own."""

    def __init__(self, network: Network, kernels: Kernels) -> None:
        """Takes the weights.

        Args:
            network: Whose activation is SiLU, in half precision.
            kernels: The operations.
        """
        self.network = network
        self._kernels = kernels

    def forward(self, token_ids: Tensor, rows: FusedRows) -> Tensor:
        """Runs the layers; see `Network.forward`."""
        hidden = self.network.embedding.rows(token_ids)
        return self._one(hidden, rows) if len(hidden) == 1 else self._many(hidden, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits, [N, vocabulary], of what `forward` returned."""
        network, epsilon = self.network, self.network.shape.norm_epsilon
        if len(hidden) == 1:
            return self._kernels.vector_product(hidden, network.head, norm=network.final_norm, epsilon=epsilon)
        return self._product(self._kernels.normed(hidden, network.final_norm, epsilon), network.head)

    def _one(self, hidden: Tensor, rows: FusedRows) -> Tensor:
        product, epsilon, layers = self._kernels.vector_product, self.network.shape.norm_epsilon, self._layers
        after = [layer.query_key_value.values for layer in layers[1:]] + [self.network.head.values]
        for number, layer in enumerate(layers):
            joined = product(hidden, layer.query_key_value, norm=layer.input_norm, epsilon=epsilon)
            seen = rows.attend(number, self._heads(layer, joined), layer.window)
            hidden = product(seen, layer.output, residual=hidden, ahead=layer.gate_up.values)
            norm, down = layer.attention_norm, layer.down.values
            inner = product(hidden, layer.gate_up, norm=norm, epsilon=epsilon, gated=True, ahead=down)
            hidden = product(inner, layer.down, residual=hidden, ahead=after[number])
        return hidden

    def _many(self, hidden: Tensor, rows: FusedRows) -> Tensor:
        kernels, epsilon = self._kernels, self.network.shape.norm_epsilon
        delta: Tensor | None = None
        for number, layer in enumerate(self._layers):
            inner = kernels.normed(hidden, layer.input_norm, epsilon, delta)
            joined = self._product(inner, layer.query_key_value)
            delta = self._product(rows.attend(number, self._heads(layer, joined), layer.window), layer.output)
            inner = kernels.normed(hidden, layer.attention_norm, epsilon, delta)
            delta = self._product(kernels.gated(self._product(inner, layer.gate_up)), layer.down)
        return hidden if delta is None else hidden + delta

    @property
    def _layers(self) -> list[Layer]:
        return [layer for layer in self.network.layers if isinstance(layer, Layer)]

    def _product(self, rows: Tensor, weight: Weight) -> Tensor:
        few = weight.scales is not None and len(rows) <= _FEW_ROWS_INT8
        product: Tensor = self._kernels.few_products(rows, weight) if few else weight(rows)
        return product

    def _heads(self, layer: Layer, joined: Tensor) -> Tensor:
        """Returns [N, heads, head size], query and key normed where the family does that."""
        shape = self.network.shape
        heads = joined.view(len(joined), -1, shape.head_size)
        if layer.query_norm is None or layer.key_norm is None:
            return heads
        query, key, value = heads.split([shape.head_count, shape.key_head_count, shape.key_head_count], dim=1)
        normed = [
            self._kernels.normed(part.contiguous(), norm, shape.norm_epsilon)
            for part, norm in ((query, layer.query_norm), (key, layer.key_norm))
        ]
        return torch.cat((*normed, value), dim=1)
