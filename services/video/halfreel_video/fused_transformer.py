"""The body of SVD's transformers without passes over memory of their own for sums, biases and turns.

Tokens stay in the order frame by frame, also for attention in time, which picks a pixel's frames itself. Sums are left
open: a tensor in memory and a shift for each image, which the next norm adds, and products add up in place.
Knows nothing of what comes before and after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import sdpa_kernel

from halfreel_video.attention_kernels import KERNELS


class FusedTransformer:
    """Takes the place of a lean TransformerSpatioTemporalModel's `body`."""

    def __init__(self, model: Any, kernels: Any, attention: str = "") -> None:
        """Takes the arguments of `fused.fuse_unet`; raises ValueError for a model of another make."""
        self._model = model
        self._kernels = kernels
        names = [attention, *(name for name in KERNELS if name != attention)] if attention else []
        self._order = [KERNELS[name] for name in names]
        for block in (*model.transformer_blocks, *model.temporal_transformer_blocks):
            layers = [block.ff, *([block.ff_in] if hasattr(block, "ff_in") else [])]
            attend = block.attn1
            usual = (
                all(isinstance(layer.net[0], GEGLU) for layer in layers)
                and getattr(block, "norm_type", "layer_norm") == "layer_norm"
                and getattr(block, "is_res", True)
                and attend.to_q.bias is None
                and attend.norm_q is None
                and attend.rescale_output_factor == 1
                and not attend.residual_connection
            )
            if not usual:
                raise ValueError("a transformer is of another make than Stable Video Diffusion's")

    def __call__(
        self, hidden_states: Tensor, place: Tensor, seen: Sequence[Tensor], image_only_indicator: Tensor
    ) -> Tensor:
        """As the body's: (images, channels, height, width)."""
        model, run = self._model, self._kernels
        frames = image_only_indicator.shape[1]
        hidden = hidden_states.contiguous(memory_format=torch.channels_last)
        images, _, height, width = hidden.shape
        tokens = _rows(run.group_norm(hidden, model.norm))
        tokens = functional.linear(tokens, model.proj_in.weight, model.proj_in.bias)
        mix = model.time_mixer.mix_factor.float()
        weight = torch.sigmoid(mix if model.time_mixer.switch_spatial_to_temporal_mix else -mix)
        blocks = zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)
        for index, (block, temporal_block) in enumerate(blocks):
            shift = self._in_space(block, tokens, images, seen[2 * index][:, 0].float(), frames)
            given = seen[2 * index + 1][:, 0].float().repeat_interleave(frames, dim=0)
            added, total = self._in_time(temporal_block, tokens, shift, place[:, 0].float(), given, frames)
            # (1 - weight) x space + weight x (space + all that was added in time)
            shift = shift + weight * total
            tokens = _rows(run.blended(_picture(tokens, images), _picture(added, images), shift=shift, weight=weight))
        tokens = functional.linear(tokens, model.proj_out.weight, model.proj_out.bias)
        tokens += _rows(hidden)
        return tokens.reshape(images, height, width, -1).permute(0, 3, 1, 2)

    def _in_space(self, block: Any, tokens: Tensor, images: int, given: Tensor, frames: int) -> Tensor:
        """Adds to tokens (images x pixels, channels) in place; returns what is still to be added: (images, channels).

        `given` is what the cross attention gives: (clips, channels).
        """
        run, attend = self._kernels, block.attn1
        joined = _joined(run.layer_norm(tokens, block.norm1), attend)
        query, key, value = joined.reshape(images, -1, 3, attend.heads, tokens.shape[1] // attend.heads).unbind(2)
        with sdpa_kernel(self._order, set_priority=True) if self._order else contextlib.nullcontext():
            seen = functional.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            )
        del joined, query, key, value
        tokens.addmm_(seen.transpose(1, 2).reshape(tokens.shape), attend.to_out[0].weight.t())
        del seen
        shift = (given + attend.to_out[0].bias.float()).repeat_interleave(frames, dim=0)
        inner = self._gated(run.layer_norm(tokens, block.norm3, shift=shift), block.ff)
        tokens.addmm_(inner, block.ff.net[2].weight.t())
        result: Tensor = shift + block.ff.net[2].bias.float()
        return result

    def _in_time(
        self, block: Any, tokens: Tensor, shift: Tensor, place: Tensor, given: Tensor, frames: int
    ) -> tuple[Tensor, Tensor]:
        """What a temporal block adds to tokens + shift: a tensor like tokens, and a shift (images, channels).

        `place` is the embedding of each frame's place, and `given` what the cross attention gives to it.
        """
        run, attend = self._kernels, block.attn1
        total = place
        inner = self._gated(run.layer_norm(tokens, block.norm_in, shift=shift + total), block.ff_in)
        added = inner @ block.ff_in.net[2].weight.t()
        total = total + block.ff_in.net[2].bias.float()
        joined = _joined(run.layer_norm(tokens, block.norm1, shift=shift + total, other=added), attend)
        seen = run.attend_in_time(joined, clips=len(place) // frames, frames=frames, heads=attend.heads)
        del joined
        added.addmm_(seen, attend.to_out[0].weight.t())
        del seen
        total = total + attend.to_out[0].bias.float() + given
        inner = self._gated(run.layer_norm(tokens, block.norm3, shift=shift + total, other=added), block.ff)
        added.addmm_(inner, block.ff.net[2].weight.t())
        return added, total + block.ff.net[2].bias.float()

    def _gated(self, tokens: Tensor, layer: Any) -> Tensor:
        """The inner half of a feed-forward layer."""
        project = layer.net[0].proj
        result: Tensor = self._kernels.gated(functional.linear(tokens, project.weight, project.bias))
        return result


def _joined(tokens: Tensor, attend: Any) -> Tensor:
    """Query, key and value by one product: the joined weight is there for its time alone."""
    weight = torch.cat([attend.to_q.weight, attend.to_k.weight, attend.to_v.weight])
    return functional.linear(tokens, weight)


def _rows(picture: Tensor) -> Tensor:
    """The pixels of pictures whose channels lie side by side: (images x pixels, channels)."""
    return picture.permute(0, 2, 3, 1).flatten(0, 2)


def _picture(tokens: Tensor, images: int) -> Tensor:
    """Tokens as pictures of one row."""
    return tokens.reshape(images, 1, -1, tokens.shape[1]).permute(0, 3, 1, 2)
