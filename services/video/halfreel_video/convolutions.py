"""Convolutions as compiled code has them: over pixels whose channels lie side by side, which is how tensor cores read.

The same sums in another order. A convolution over three frames is one over a picture whose rows are frames and whose
columns are pixels: kernels for pictures are far better than those for films. Where code is not compiled the layers are
as they come: uncompiled, this order of memory made a step slower on an H200 (707 against 636 ms), for the norms between
the convolutions then read it badly. Weights are turned within the compiled code, which by reckoning costs about a
millisecond a step, so that they lie in memory as they were loaded and uncompiled clips stay the same.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn import functional

Temporal = Literal["picture", "product"]


def take_over_convolutions(module: Any, temporal: Temporal = "picture") -> None:
    """Has a module's convolutions so wherever they are compiled; does nothing to other kinds of convolution.

    Args:
        module: whose layers are taken over; a second time changes nothing.
        temporal: those over frames as a convolution of a "picture", or as one "product" of a matrix with three frames
            side by side.
    """
    for layer in module.modules():
        if getattr(layer, "groups", 0) != 1 or getattr(layer, "padding_mode", "") != "zeros":
            continue
        if isinstance(layer, torch.nn.Conv2d) and not isinstance(layer.padding, str):
            _take_over(layer, _of_pictures(layer))
        elif isinstance(layer, torch.nn.Conv3d) and _is_temporal(layer):
            _take_over(layer, _of_frames(layer, temporal))


def _take_over(layer: Any, compiled: Callable[[torch.Tensor], torch.Tensor]) -> None:
    plain = type(layer).forward.__get__(layer)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = compiled(hidden) if torch.compiler.is_compiling() else plain(hidden)
        return result

    layer.forward = forward


def _of_pictures(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = functional.conv2d(
            _channels_last(hidden),
            _channels_last(layer.weight),
            layer.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
        )
        return result

    return forward


def _is_temporal(layer: Any) -> bool:
    """Whether a convolution of shape (frames, height, width) looks at frames of one pixel alone, one step a frame."""
    length = layer.kernel_size[0]
    same_length = length % 2 == 1 and tuple(layer.padding) == (length // 2, 0, 0)
    return same_length and layer.kernel_size[1:] == (1, 1) and set(layer.stride + layer.dilation) == {1}


def _of_frames(layer: Any, temporal: Temporal) -> Callable[[torch.Tensor], torch.Tensor]:
    length = layer.kernel_size[0]

    def picture(hidden: torch.Tensor) -> torch.Tensor:
        clips, channels, frames, height, width = hidden.shape
        flat = _channels_last(hidden.reshape(clips, channels, frames, height * width))
        seen = functional.conv2d(flat, _channels_last(layer.weight.squeeze(-1)), layer.bias, padding=(length // 2, 0))
        return seen.reshape(clips, seen.shape[1], frames, height, width)

    def product(hidden: torch.Tensor) -> torch.Tensor:
        frames = hidden.shape[2]
        rows = hidden.permute(0, 2, 3, 4, 1)  # (clips, frames, height, width, channels)
        padded = functional.pad(rows, (0, 0) * 3 + (length // 2, length // 2))
        beside = torch.cat([padded[:, start : start + frames] for start in range(length)], dim=-1)
        weight = layer.weight.flatten(2).permute(0, 2, 1).flatten(1)  # (channels out, frames x channels in)
        return functional.linear(beside, weight, layer.bias).permute(0, 4, 1, 2, 3)

    return picture if temporal == "picture" else product


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
