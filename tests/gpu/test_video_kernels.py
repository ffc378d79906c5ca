"""The kernels of the video model's blocks against their definitions in PyTorch; each is compiled for this GPU.

With TRITON_INTERPRET=1 they run on a CPU, the UNet aside.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available() and not os.environ.get("TRITON_INTERPRET"):
    pytest.skip("no GPU that torch can use", allow_module_level=True)

from diffusers import UNetSpatioTemporalConditionModel
from tiny_video import svd_pipeline
from torch import Tensor, nn

from halfreel_video import fused_kernels, fused_plain
from halfreel_video.fused import fuse_unet, kernels_for, turn_weights
from halfreel_video.fused_blocks import FusedBlocks

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.float16] if ON_GPU else [torch.float32]
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3}


def drawn(*shape: int, mean: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + mean
    return numbers.to(DEVICE, dtype)


def picture(*shape: int, mean: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return drawn(*shape, mean=mean, dtype=dtype).contiguous(memory_format=torch.channels_last)


def set_to(layer: Any, dtype: torch.dtype) -> Any:
    """The same layer with weights that show."""
    for parameter in layer.to(DEVICE, dtype).requires_grad_(False).parameters():
        parameter.copy_(drawn(*parameter.shape))
    return layer


def check(given: Tensor, wanted: Tensor, rounding: float = 0.0) -> None:
    assert given.dtype == wanted.dtype
    assert given.stride() == wanted.stride()
    distance = (given.double() - wanted.double()).norm() / wanted.double().norm()
    assert distance < (rounding or ROUNDING[given.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("frames", "silu", "shifts", "channels", "size"),
    [(1, True, 6, 96, (5, 7)), (3, False, 1, 96, (5, 7)), (3, True, 6, 32, (5, 7)), (2, True, 0, 64, (20, 30))],
    ids=["images", "one shift", "films", "many pixels"],
)
def test_groups_are_normed(
    dtype: torch.dtype, frames: int, silu: bool, shifts: int, channels: int, size: tuple[int, int]
) -> None:
    hidden, norm = picture(6, channels, *size, mean=3.0, dtype=dtype), set_to(nn.GroupNorm(32, channels), dtype)
    shift = drawn(shifts, channels, dtype=dtype) if shifts else None
    named: dict[str, Any] = {"frames": frames, "silu": silu, "shift": shift}
    check(fused_kernels.group_norm(hidden, norm, **named), fused_plain.group_norm(hidden, norm, **named), 1e-3)


@pytest.mark.skipif(not ON_GPU, reason="too many pixels for the interpreter")
@pytest.mark.parametrize("frames", [1, 8])
def test_a_decoders_pictures_are_normed(frames: int) -> None:
    hidden = picture(8, 128, 576, 1024, mean=1.0, dtype=torch.float16)
    norm = set_to(nn.GroupNorm(32, 128), torch.float16)
    given = fused_kernels.group_norm(hidden, norm, frames=frames, silu=True)
    check(given, fused_plain.group_norm(hidden, norm, frames=frames, silu=True))


def test_nothing_cancels_far_from_zero() -> None:
    hidden, norm = picture(2, 32, 20, 30, mean=1000.0), set_to(nn.GroupNorm(32, 32), torch.float32)
    given = fused_kernels.group_norm(hidden, norm)
    torch.testing.assert_close(given.double(), norm.double()(hidden.double()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shifts", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_two_pictures_are_blended(dtype: torch.dtype, shifts: int, weighted: bool) -> None:
    hidden, other = picture(3, 96, 5, 30, dtype=dtype), picture(3, 96, 5, 30, mean=1.0, dtype=dtype)
    weight = torch.tensor([0.3], device=DEVICE) if weighted else None
    named = {"shift": drawn(shifts, 96), "weight": weight}
    check(fused_kernels.blended(hidden, other, **named), fused_plain.blended(hidden, other, **named))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shifts", "added"), [(0, False), (3, False), (0, True), (3, True)])
@pytest.mark.parametrize("size", [80, 1280])
def test_tokens_are_normed(dtype: torch.dtype, shifts: int, added: bool, size: int) -> None:
    hidden, norm = drawn(21, size, mean=2.0, dtype=dtype), set_to(nn.LayerNorm(size), dtype)
    other = drawn(21, size, mean=1.0, dtype=dtype) if added else None
    named = {"shift": drawn(shifts, size) if shifts else None, "other": other}
    check(fused_kernels.layer_norm(hidden, norm, **named), fused_plain.layer_norm(hidden, norm, **named))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates(dtype: torch.dtype) -> None:
    both = 3 * drawn(11, 2 * 300, dtype=dtype)
    check(fused_kernels.gated(both), fused_plain.gated(both))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("frames", "size"), [(5, 16), (25, 64), (1, 16), (3, 12), (65, 16)])
def test_frames_look_at_each_other(dtype: torch.dtype, frames: int, size: int) -> None:
    clips, pixels, heads = 2, 3, 2
    joined = drawn(clips * frames * pixels, 3 * heads * size, dtype=dtype)
    named = {"clips": clips, "frames": frames, "heads": heads}
    check(fused_kernels.attend_in_time(joined, **named), fused_plain.attend_in_time(joined, **named))


@pytest.mark.skipif(not ON_GPU, reason="takes the interpreter minutes")
@pytest.mark.parametrize("temporal", ["picture", "product"])
def test_in_half_precision_a_unet_is_no_further_from_full_precision_than_diffusers(temporal: Any) -> None:
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(320, 640),
        layers_per_block=1,
        num_attention_heads=(5, 10),
    )
    unet = unet.to(DEVICE, torch.float16).eval().requires_grad_(False)
    given: dict[str, Any] = {
        "sample": drawn(2, 14, 8, 24, 40, dtype=torch.float16),
        "encoder_hidden_states": drawn(2, 1, 1024, dtype=torch.float16),
        "added_time_ids": drawn(2, 3, dtype=torch.float16).abs() * 100,
    }
    timestep = torch.tensor(0.7, device=DEVICE)
    fused = copy.deepcopy(unet)
    fuse_unet(fused, fused_kernels, temporal=temporal)
    turn_weights(fused)
    ours, theirs = fused(timestep=timestep, **given)[0], unet(timestep=timestep, **given).sample
    wide = {name: value.float() for name, value in given.items()}
    exact = unet.float()(timestep=timestep, **wide).sample
    assert (ours - exact).norm() < 1.1 * (theirs - exact).norm() < 0.02 * exact.norm()


@pytest.mark.skipif(not ON_GPU, reason="takes the interpreter minutes")
def test_a_server_would_use_them_on_this_gpu() -> None:
    pipeline = svd_pipeline(3).to(DEVICE, torch.float16)
    for part in (pipeline.unet, pipeline.vae):
        part.eval().requires_grad_(False)
    blocks = FusedBlocks(pipeline, lambda: kernels_for(DEVICE))
    assert blocks.check_all(), blocks.problem
