"""SVD's blocks in fewer passes over memory, without a compiler: the same numbers up to rounding.

As diffusers has them, about 250 of the 591 ms of a step on an H200 go to norms, activations, sums and turns of the
layout around convolutions and products. Here pictures have their channels side by side from the first layer to the
last, norms take their activation and what is added before with them, and a residual is added where the result is
written. Weights, their names and the blocks stay; weights of convolutions may be turned in place, which keeps their
bytes. Knows neither steps nor requests.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn import functional

from halfreel_video import fused_plain
from halfreel_video.fused_transformer import FusedTransformer
from halfreel_video.lean_unet import make_lean

Temporal = Literal["picture", "product"]
_MANY = 8  # channels: with fewer of them side by side tensor cores can't read


def has_kernels(device: torch.device) -> bool:
    """Whether a device has kernels of our own: a GPU where there is Triton."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def kernels_for(device: torch.device) -> Any:
    """The operations for a device: own kernels where it has them, PyTorch's words elsewhere, which gain nothing."""
    if not has_kernels(device):
        return fused_plain
    from halfreel_video import fused_kernels

    return fused_kernels


@dataclass(frozen=True)
class Swap:
    """A callable of a module, and what takes its place."""

    owner: Any
    name: str
    fused: Callable[..., Any]

    def put(self) -> None:
        """Puts it in its place."""
        setattr(self.owner, self.name, self.fused)


def unet_swaps(unet: Any, kernels: Any, *, temporal: Temporal = "picture", attention: str = "") -> list[Swap]:
    """What takes the place of the blocks of a UNetSpatioTemporalConditionModel, which is made lean first.

    Args:
        unet: of which no frame is a picture of its own (`image_only_indicator` is 0), as in every clip.
        kernels: `fused_kernels` or `fused_plain`.
        temporal: convolutions over frames as one of a "picture", or as three products added up ("product").
        attention: the first of `attention_kernels.KERNELS` to be tried for attention in space; empty for PyTorch's own.

    Raises:
        ValueError: the model is of another make.
    """
    make_lean(unet)
    bodies = [
        Swap(module, "body", FusedTransformer(module, kernels, attention))
        for module in unet.modules()
        if isinstance(module, TransformerSpatioTemporalModel)
    ]
    return bodies + _layer_swaps(unet, kernels, temporal)


def decoder_swaps(decoder: Any, kernels: Any, *, temporal: Temporal = "picture") -> list[Swap]:
    """What takes the place of the blocks of a TemporalDecoder; the arguments are as in `unet_swaps`."""
    # The convolution over frames after it has three channels: it stays as it comes.
    plain = decoder.conv_out.forward
    last = Swap(decoder.conv_out, "forward", lambda hidden: plain(hidden).contiguous())
    return [*_layer_swaps(decoder, kernels, temporal), last]


def fuse_unet(unet: Any, kernels: Any, *, temporal: Temporal = "picture", attention: str = "") -> None:
    """Takes over the blocks of a UNet for good; see `unet_swaps`."""
    for swap in unet_swaps(unet, kernels, temporal=temporal, attention=attention):
        swap.put()


def fuse_decoder(decoder: Any, kernels: Any, *, temporal: Temporal = "picture") -> None:
    """Takes over the blocks of a TemporalDecoder for good; see `decoder_swaps`."""
    for swap in decoder_swaps(decoder, kernels, temporal=temporal):
        swap.put()


def turn_weights(module: Any) -> None:
    """Has the weights of convolutions in the order that their kernels read: the same bytes at other places.

    Where they are not, each convolution turns its own whenever it runs.
    """
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(layer, torch.nn.Conv3d) and layer.in_channels >= _MANY:
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)


def _layer_swaps(module: Any, kernels: Any, temporal: Temporal) -> list[Swap]:
    swaps = []
    for layer in module.modules():
        if isinstance(layer, SpatioTemporalResBlock):
            swaps.append(Swap(layer, "forward", FusedResnet(layer, kernels, temporal)))
        elif isinstance(layer, Upsample2D):
            swaps.append(Swap(layer, "forward", _upsampler(layer)))
    norm = module.conv_norm_out

    def normed(hidden: Tensor) -> Tensor:
        result: Tensor = kernels.group_norm(_channels_last(hidden), norm, silu=True)
        return result

    return [*swaps, Swap(norm, "forward", normed), Swap(module.conv_act, "forward", lambda hidden: hidden)]


class FusedResnet:
    """The forward of a SpatioTemporalResBlock."""

    def __init__(self, block: Any, kernels: Any, temporal: Temporal) -> None:
        """Raises ValueError for a block of another make."""
        self._space, self._time, self._mixer = block.spatial_res_block, block.temporal_res_block, block.time_mixer
        self._kernels = kernels
        self._over_frames = _as_picture if temporal == "picture" else _as_products
        space = self._space
        usual = (
            isinstance(space.nonlinearity, torch.nn.SiLU)
            and space.time_embedding_norm == "default"
            and not (space.up or space.down or space.skip_time_act)
            and space.output_scale_factor == 1
            and self._time.conv_shortcut is None
            and self._mixer.merge_strategy != "fixed"
        )
        if not usual:
            raise ValueError("a resnet is of another make than Stable Video Diffusion's")

    def __call__(self, hidden_states: Tensor, temb: Tensor | None = None, image_only_indicator: Any = None) -> Tensor:
        """As the block's: (images, channels, height, width)."""
        run, space, time = self._kernels, self._space, self._time
        frames = image_only_indicator.shape[-1]
        active = None if temb is None else functional.silu(temb)
        hidden = _channels_last(hidden_states)
        inner = functional.conv2d(run.group_norm(hidden, space.norm1, silu=True), space.conv1.weight, padding=1)
        shift = _shift(space, active)
        inner = run.group_norm(_channels_last(inner), space.norm2, silu=True, shift=shift)
        inner = _channels_last(functional.conv2d(inner, space.conv2.weight, padding=1))
        if space.conv_shortcut is not None:
            hidden = _pointwise(hidden, space.conv_shortcut)
        hidden = run.blended(hidden, inner, shift=space.conv2.bias[None])
        inner = run.group_norm(hidden, time.norm1, frames=frames, silu=True)
        inner = self._over_frames(inner, time.conv1.weight, frames)
        inner = run.group_norm(inner, time.norm2, frames=frames, silu=True, shift=_shift(time, active))
        inner = self._over_frames(inner, time.conv2.weight, frames)
        # (1 - weight) x space + weight x (space + inner + bias)
        weight = time_weight(self._mixer)
        shift = weight * time.conv2.bias.float()[None]
        result: Tensor = run.blended(hidden, inner, shift=shift, weight=weight)
        return result


def time_weight(mixer: Any) -> Tensor:
    """How much of an AlphaBlender's result is of time, where all frames are of a clip: one number, in FP32."""
    mix = mixer.mix_factor.float()
    return torch.sigmoid(mix if mixer.switch_spatial_to_temporal_mix else -mix)


def _shift(block: Any, active: Tensor | None) -> Tensor:
    """What is added to each image's channels after the first convolution: (images or 1, channels)."""
    bias: Tensor = block.conv1.bias
    if active is None or block.time_emb_proj is None:
        return bias[None]
    project = block.time_emb_proj
    return functional.linear(active, project.weight, project.bias + bias)


def _pointwise(hidden: Tensor, layer: Any) -> Tensor:
    """A convolution that looks at one pixel is a product."""
    seen = functional.linear(hidden.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias)
    return seen.permute(0, 3, 1, 2)


def _as_picture(hidden: Tensor, weight: Tensor, frames: int) -> Tensor:
    """A convolution over frames, with images (clips x frames, channels, height, width), as one over pictures.

    Their rows are frames and their columns pixels; kernels for pictures are far better than those for films.
    """
    images, channels, height, width = hidden.shape
    flat = hidden.permute(0, 2, 3, 1).reshape(images // frames, frames, height * width, channels).permute(0, 3, 1, 2)
    seen = functional.conv2d(flat, weight.squeeze(-1), padding=(weight.shape[2] // 2, 0))
    return _channels_last(seen.permute(0, 2, 3, 1).reshape(images, height, width, -1).permute(0, 3, 1, 2))


def _as_products(hidden: Tensor, weight: Tensor, frames: int) -> Tensor:
    """The same as a product for each frame that is looked at, added up in memory."""
    images, channels, height, width = hidden.shape
    middle = weight.shape[2] // 2
    taps = [weight[:, :, tap, 0, 0].t() for tap in range(weight.shape[2])]
    rows = hidden.permute(0, 2, 3, 1).reshape(images // frames, -1, channels)
    seen = rows @ taps[middle]
    for given, taken in zip(rows, seen, strict=True):
        for tap, factors in enumerate(taps):
            away = (tap - middle) * height * width
            if tap < middle and frames > middle - tap:
                taken[-away:].addmm_(given[:away], factors)
            elif tap > middle and frames > tap - middle:
                taken[:-away].addmm_(given[away:], factors)
    return seen.reshape(images, height, width, -1).permute(0, 3, 1, 2)


def _upsampler(layer: Any) -> Callable[..., Tensor]:
    plain = type(layer).forward.__get__(layer)

    def forward(hidden_states: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        images, channels, height, width = hidden_states.shape
        if (output_size is not None and tuple(output_size) != (2 * height, 2 * width)) or not layer.use_conv:
            return _channels_last(plain(hidden_states, output_size))
        rows = _channels_last(hidden_states).permute(0, 2, 3, 1)[:, :, None, :, None]
        doubled = rows.expand(-1, -1, 2, -1, 2, -1).reshape(images, 2 * height, 2 * width, channels)
        return _channels_last(layer.conv(doubled.permute(0, 3, 1, 2)))

    return forward


def _channels_last(hidden: Tensor) -> Tensor:
    return hidden.contiguous(memory_format=torch.channels_last)
