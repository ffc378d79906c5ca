"""The network's arithmetic for rows of tokens that belong to different replies, over the weights of a model class.

The model classes of transformers describe and own the weights; here they are read once, joined where two products share
an input, and applied to any number of rows, each with a position of its own. Knows no cache and no reply: attention is
asked of whoever gives the rows. That it computes what the classes compute is held by tests, family by family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from halfreel_llm.weight import Weight, join


class Rows(Protocol):
    """The tokens of one step: where they stand, and what they attend to."""

    positions: Tensor
    """[N] int64: the place of each token in its own reply."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        """Keeps keys and values, and attends to all that the rows' replies have up to their own.

        Args:
            layer: Its number.
            query: [N, heads, head size], rotated.
            key: [N, key heads, head size], rotated.
            value: As `key`.
            window: A row sees so many tokens at most, its own included; None for all.

        Returns:
            [N, heads, head size].
        """


@dataclass(frozen=True)
class Shape:
    """The sizes of a network."""

    layer_count: int
    head_count: int
    key_head_count: int
    head_size: int
    hidden_size: int
    vocabulary_size: int
    rotary_size: int
    """Of each head, the first so many numbers turn with the position."""
    interleaved: bool
    """Whether the two numbers that turn together lie side by side (GLM), or half the rotary size apart."""
    norm_epsilon: float


class Layer(nn.Module):
    """The weights of one layer.

    Attributes:
        query_key_value: [heads + 2 x key heads, times head size, hidden].
        query_norm, key_norm: over each head, before rotation; None where the family has none.
        gate_up: [2 x intermediate, hidden], the gate first.
        window: tokens that a row sees; None for all.
    """

    input_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    attention_norm: Tensor

    def __init__(self, layer: nn.Module, window: int | None, device: torch.device, *, int8: bool) -> None:
        """Takes the weights out of a layer of a model class, and the window that all its layers share."""
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        gate_up = [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]
        self.register_buffer("input_norm", layer.input_layernorm.weight.data)
        self.query_key_value = join(attention.q_proj, attention.k_proj, attention.v_proj)
        self.register_buffer("query_norm", attention.q_norm.weight.data if hasattr(attention, "q_norm") else None)
        self.register_buffer("key_norm", attention.k_norm.weight.data if hasattr(attention, "k_norm") else None)
        self.output = join(attention.o_proj)
        self.register_buffer("attention_norm", layer.post_attention_layernorm.weight.data)
        self.gate_up = join(*gate_up)
        self.down = join(mlp.down_proj)
        # Qwen's layers have windows of their own; Mistral's share one; the others have none.
        self.window: int | None = attention.sliding_window if hasattr(attention, "sliding_window") else window
        if int8:
            for weight in (self.query_key_value, self.output, self.gate_up, self.down):
                weight.quantise(device)
        self.to(device)


class Network(nn.Module):
    """Embedding, layers and head of one model. A module, so that its weights can leave the device and come back."""

    final_norm: Tensor
    cosines: Tensor
    sines: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        context_token_count: int,
        *,
        device: torch.device | None = None,
        int8: bool = False,
    ) -> None:
        """Takes the weights out of a loaded model, which can't be used any more: each is kept once.

        Args:
            model: Of a class on the allowlist.
            context_token_count: Positions run below this.
            device: Where the weights go, matrix by matrix; where they are, if left out.
            int8: Keep the matrices in 8 bits; no more than a slice of one is ever there in the model's arithmetic.
        """
        super().__init__()
        config, inner = model.config, model.model
        attention, mlp = inner.layers[0].self_attn, inner.layers[0].mlp
        self.device, self.dtype = device or model.device, model.dtype
        tied = model.lm_head.weight.data_ptr() == inner.embed_tokens.weight.data_ptr()
        self.embedding = self._placed(inner.embed_tokens.weight.data, int8=int8)
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())
        shared_window = getattr(config, "sliding_window", None)
        self.layers = nn.ModuleList(Layer(layer, shared_window, self.device, int8=int8) for layer in inner.layers)
        self.register_buffer("final_norm", inner.norm.weight.data.to(self.device))
        self.head = self.embedding if tied else self._placed(model.lm_head.weight.data, int8=int8)
        self._activation = mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn
        self.scaling: float = attention.scaling
        self.silu = config.hidden_act in ("silu", "swish")
        cosines, sines = _rotary_table(inner.rotary_emb, context_token_count, self.final_norm)
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)
        self.shape = Shape(
            layer_count=len(self.layers),
            head_count=config.num_attention_heads,
            key_head_count=config.num_key_value_heads,
            head_size=attention.head_dim,
            hidden_size=config.hidden_size,
            vocabulary_size=config.vocab_size,
            rotary_size=2 * cosines.shape[1],
            interleaved=config.model_type == "glm",
            norm_epsilon=inner.norm.variance_epsilon,
        )

    @property
    def weights(self) -> list[Weight]:
        """Every matrix of the layers, and the head."""
        layers = ((layer.query_key_value, layer.output, layer.gate_up, layer.down) for layer in self.layers)
        return [*(weight for layer in layers for weight in layer), self.head]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights; a head that is the embedding counts once."""
        own = [each for name, each in self.named_buffers() if name not in ("cosines", "sines")]
        return sum({each.data_ptr(): each.numel() * each.element_size() for each in own}.values())

    @property
    def weight_precision(self) -> str:
        """How the matrices are kept: "int8" or the name of the arithmetic."""
        return str(self.layers[0].down.values.dtype).removeprefix("torch.")

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that one step reads, however many rows it has."""
        return sum(weight.byte_count for weight in self.weights)

    def forward(self, token_ids: Tensor, rows: Rows) -> Tensor:
        """Runs the layers.

        Args:
            token_ids: [N] int64.
            rows: What they belong to.

        Returns:
            [N, hidden], before the last norm.
        """
        shape = self.shape
        heads, keys, size = shape.head_count, shape.key_head_count, shape.head_size
        hidden = self.embedding.rows(token_ids)
        cosines, sines = self.cosines[rows.positions, None], self.sines[rows.positions, None]
        for number, layer in enumerate(self.layers):
            joined = layer.query_key_value(self._norm(hidden, layer.input_norm)).view(len(hidden), -1, size)
            query, key, value = joined.split([heads, keys, keys], dim=1)
            if layer.query_norm is not None and layer.key_norm is not None:
                query, key = self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)
            query, key = self._rotate(query, cosines, sines), self._rotate(key, cosines, sines)
            seen = rows.attend(number, query, key, value, layer.window)
            hidden = hidden + layer.output(seen.reshape(len(hidden), heads * size))
            gate, up = layer.gate_up(self._norm(hidden, layer.attention_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(self._activation(gate) * up)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits, [N, vocabulary], of what `forward` returned."""
        return self.head(self._norm(hidden, self.final_norm))

    def _placed(self, values: Tensor, *, int8: bool) -> Weight:
        weight = Weight(values, None)
        if int8:
            weight.quantise(self.device)
        return weight.to(self.device)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        # As the model classes: the mean in 32 bits, the weight in the model's own.
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.shape.norm_epsilon)
        return (wide * scale).to(hidden.dtype) * weight

    def _rotate(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        size = self.shape.rotary_size
        turning, still = heads[..., :size], heads[..., size:]
        if self.shape.interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
        else:
            first, second = turning.chunk(2, dim=-1)
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        if self.shape.interleaved:
            together = torch.stack(turned, dim=-1).flatten(-2)
            return torch.cat((together, still), dim=-1) if still.shape[-1] else together
        return torch.cat((*turned, still), dim=-1)


def _rotary_table(rotary: nn.Module, context_token_count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of every position, [context, rotary size / 2], in the arithmetic of `like`."""
    rotary.to(like.device)
    with torch.no_grad():
        cosines, sines = rotary(like, torch.arange(context_token_count, device=like.device)[None])
        half = cosines.shape[-1] // 2  # the classes repeat each number for the second half of a head
        return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()
