"""SVD's UNet without work whose result is known before the step: the same numbers, up to rounding.

Every cross attention of this UNet has one key, the picture's embedding. A softmax over one key is 1, so its result is
`to_out(to_v(embedding))` for every query: neither queries nor keys are needed, nor the norm before them, and the result
is the same at every step of a clip. So are the embeddings of the frames' places and of the picture's size and motion.
They are computed at a clip's first step, in diffusers' own layers, and kept with the clip. At 25 frames of 1024x576
that is 5.8 of 159.9 TFLOP a step (3.6 %), and with guidance about 64 kernels.

Can also leave out the deep blocks at a step and take what they gave at an earlier one, which is a trade. Knows nothing
of schedulers, guidance or levers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel


class Kept:
    """What one clip's steps have in common, for one arithmetic and one choice of guidance halves.

    `values` by what they are of; `deep` is what the deep blocks gave at the last step that ran them, where that is
    wanted, and `deep_index` is that step's.
    """

    def __init__(self, *, keeps_deep: bool = False) -> None:
        self.keeps_deep = keeps_deep
        self.values: dict[Any, torch.Tensor] = {}
        self.deep: torch.Tensor | None = None
        self.deep_index: int | None = None


def make_lean(unet: Any) -> None:
    """Makes a UNetSpatioTemporalConditionModel lean; one that is so already stays as it is."""
    if not isinstance(getattr(unet, "lean", None), LeanUnet):
        LeanUnet(unet)


class LeanUnet:
    """Takes over the forward of a UNetSpatioTemporalConditionModel and of its parts."""

    def __init__(self, unet: Any) -> None:
        """Takes over; the weights, their names and the order of the blocks stay as they are.

        Args:
            unet: whose `forward` then takes `kept`, a Kept of the clip, beside diffusers' own arguments, and
                `reuse_deep`, whether the deep blocks are left out where `kept` has what they gave.
        """
        if not isinstance(unet, UNetSpatioTemporalConditionModel):
            raise TypeError(f"{type(unet).__name__} is not the UNet of Stable Video Diffusion")
        self._unet: Any = unet
        self._kept = Kept()
        for module in unet.modules():
            if isinstance(module, TransformerSpatioTemporalModel):
                self._take_over_transformer(module)
            if isinstance(module, BasicTransformerBlock | TemporalBasicTransformerBlock):
                # Called with what the attention gives, of one row for each of its batch.
                module.attn2.forward = _given
                module.norm2.forward = _untouched
        # The object's own attribute, like those of the parts: torch calls it, with its hooks around it.
        unet.forward = self._forward
        unet.lean = self

    def _once(self, key: Any, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        value = self._kept.values.get(key)
        if value is None:
            value = self._kept.values[key] = compute()
        return value

    def _take_over_transformer(self, model: Any) -> None:
        def places(clip_count: int, frame_count: int, like: torch.Tensor) -> torch.Tensor:
            indices = torch.arange(frame_count, device=like.device).repeat(clip_count)
            embedding: torch.Tensor = model.time_pos_embed(model.time_proj(indices).to(like.dtype))
            return embedding[:, None, :]

        def forward(
            hidden_states: torch.Tensor,
            encoder_hidden_states: torch.Tensor,
            image_only_indicator: torch.Tensor,
            return_dict: bool = True,
        ) -> tuple[torch.Tensor]:
            clip_count, frame_count = image_only_indicator.shape
            place = self._once(model, lambda: places(clip_count, frame_count, hidden_states))
            seen = [
                self._once(block, partial(_attended, block, encoder_hidden_states))
                for pair in zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)
                for block in pair
            ]
            return (model.body(hidden_states, place, seen, image_only_indicator),)

        def body(
            hidden_states: torch.Tensor,
            place: torch.Tensor,
            seen: Sequence[torch.Tensor],
            image_only_indicator: torch.Tensor,
        ) -> torch.Tensor:
            """What there is to do at each step, given what the cross attentions of both kinds of blocks see."""
            image_count, _, height, width = hidden_states.shape
            frame_count = image_only_indicator.shape[1]
            residual = hidden_states
            hidden = model.norm(hidden_states)
            channel_count = hidden.shape[1]
            hidden = model.proj_in(hidden.permute(0, 2, 3, 1).reshape(image_count, height * width, channel_count))
            blocks = zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)
            for index, (block, temporal_block) in enumerate(blocks):
                seen_here, seen_in_time = seen[2 * index], seen[2 * index + 1]
                hidden = block(hidden, encoder_hidden_states=seen_here.repeat_interleave(frame_count, dim=0))
                mixed = temporal_block(
                    hidden + place,
                    num_frames=frame_count,
                    encoder_hidden_states=seen_in_time.repeat_interleave(height * width, dim=0),
                )
                hidden = model.time_mixer(x_spatial=hidden, x_temporal=mixed, image_only_indicator=image_only_indicator)
            hidden = model.proj_out(hidden).reshape(image_count, height, width, channel_count)
            result: torch.Tensor = hidden.permute(0, 3, 1, 2).contiguous()
            return result + residual

        model.forward, model.body = forward, body

    def _forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_time_ids: torch.Tensor,
        return_dict: bool = True,
        *,
        kept: Kept | None = None,
        reuse_deep: bool = False,
    ) -> tuple[torch.Tensor]:
        """As diffusers' own: sample (clips, frames, channels, height, width), embedding (clips, 1, channels)."""
        self._kept = kept if kept is not None else Kept()
        try:
            return (self._compute(sample, timestep, encoder_hidden_states, added_time_ids, reuse_deep),)
        finally:
            self._kept = Kept()

    def _compute(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        embedding: torch.Tensor,
        added_time_ids: torch.Tensor,
        reuse_deep: bool,
    ) -> torch.Tensor:
        unet, kept = self._unet, self._kept
        clip_count, frame_count = sample.shape[:2]
        # `Timesteps` has no weights and gives FP32 always.
        time = unet.time_embedding(unet.time_proj(timestep.reshape(-1).expand(clip_count)).to(sample.dtype))
        added = self._once(
            unet,
            lambda: unet.add_embedding(
                unet.add_time_proj(added_time_ids.flatten()).reshape(clip_count, -1).to(sample.dtype)
            ),
        )
        named = {
            "temb": (time + added).repeat_interleave(frame_count, dim=0),
            "image_only_indicator": sample.new_zeros(clip_count, frame_count),
        }
        hidden = unet.conv_in(sample.flatten(0, 1))
        shallow = len(unet.up_blocks[-1].resnets)  # of the first block's results, those that the last block takes
        if reuse_deep and kept.deep is not None:
            results = (hidden, *_without_sampler(unet.down_blocks[0], hidden, named, embedding))
            assert len(results) == shallow
            hidden = kept.deep
        else:
            results = (hidden,)
            for block in unet.down_blocks:
                hidden, given = block(hidden_states=hidden, **named, **_context(block, embedding))
                results += given
            hidden = unet.mid_block(hidden_states=hidden, **named, encoder_hidden_states=embedding)
            for block in unet.up_blocks[:-1]:
                count = len(block.resnets)
                hidden = block(
                    hidden_states=hidden,
                    res_hidden_states_tuple=results[-count:],
                    # Where a level below was odd, its size is not half of the size above.
                    upsample_size=results[-count - 1].shape[2:],
                    **named,
                    **_context(block, embedding),
                )
                results = results[:-count]
            kept.deep = hidden if kept.keeps_deep else None
        last = unet.up_blocks[-1]
        hidden = last(
            hidden_states=hidden, res_hidden_states_tuple=results[-shallow:], **named, **_context(last, embedding)
        )
        hidden = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return hidden.reshape(clip_count, frame_count, *hidden.shape[1:])


def _attended(block: Any, embedding: torch.Tensor) -> torch.Tensor:
    """What a block's cross attention gives to every query of a clip: (clips, 1, channels)."""
    result: torch.Tensor = block.attn2.to_out[0](block.attn2.to_v(embedding))
    return result


def _given(hidden: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
    return encoder_hidden_states


def _untouched(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _context(block: Any, embedding: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a block with attention takes beside the others."""
    return {"encoder_hidden_states": embedding} if getattr(block, "has_cross_attention", False) else {}


def _without_sampler(
    block: Any, hidden: torch.Tensor, named: dict[str, torch.Tensor], embedding: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The results of a down block's layers, without the one that makes them smaller."""
    results: tuple[torch.Tensor, ...] = ()
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        hidden = resnet(hidden, named["temb"], image_only_indicator=named["image_only_indicator"])
        if attention is not None:
            indicator = named["image_only_indicator"]
            (hidden,) = attention(hidden, encoder_hidden_states=embedding, image_only_indicator=indicator)
        results += (hidden,)
    return results
