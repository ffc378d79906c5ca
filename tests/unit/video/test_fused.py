"""The fused blocks give diffusers' numbers, and their operations in PyTorch's words what they should."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_video import svd_pipeline
from torch import Tensor, nn

from halfreel_video import fused_plain
from halfreel_video.fused import fuse_decoder, fuse_unet, kernels_for, turn_weights
from halfreel_video.lean_unet import Kept


@pytest.fixture(scope="module")
def svd() -> Any:
    pipeline = svd_pipeline(3)
    draws = torch.Generator().manual_seed(0)
    for part in (pipeline.unet, pipeline.vae):
        part.requires_grad_(False)
        # Biases and norms are 0 and 1 where training begins: what is left out would not be seen.
        for name, parameter in part.named_parameters():
            if parameter.ndim == 1 and not name.endswith("mix_factor"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=draws)
    return pipeline


def drawn(*shape: int, mean: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + mean


def picture(*shape: int, mean: float = 0.0) -> Tensor:
    return drawn(*shape, mean=mean).contiguous(memory_format=torch.channels_last)


def distance(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


def set_to(layer: Any) -> Any:
    """The same layer with weights that show."""
    for parameter in layer.requires_grad_(False).parameters():
        parameter.copy_(drawn(*parameter.shape))
    return layer


def inputs(halves: int, frame_count: int, height: int, width: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(halves + frame_count + height)
    return {
        "sample": torch.randn(halves, frame_count, 8, height, width, generator=draws),
        "timestep": torch.tensor(0.7),
        "encoder_hidden_states": torch.randn(halves, 1, 32, generator=draws),
        "added_time_ids": torch.rand(halves, 3, generator=draws) * 100,
    }


@pytest.mark.parametrize("temporal", ["picture", "product"])
@pytest.mark.parametrize("turned", [False, True], ids=["as loaded", "turned"])
@pytest.mark.parametrize("shape", [(1, 5, 8, 8), (2, 5, 8, 8), (2, 1, 8, 8), (2, 3, 12, 20), (2, 2, 9, 11)], ids=str)
@torch.no_grad()
def test_the_unet_gives_the_numbers_of_diffusers(svd: Any, temporal: Any, turned: bool, shape: Any) -> None:
    given, unet, kept = inputs(*shape), copy.deepcopy(svd.unet), Kept()
    expected = svd.unet(**given, return_dict=False)[0]
    fuse_unet(unet, fused_plain, temporal=temporal)
    if turned:
        turn_weights(unet)
    first = unet(**given, kept=kept)[0]
    assert distance(first, expected) < 1e-5
    assert torch.equal(unet(**given, kept=kept)[0], first)


@pytest.mark.parametrize("temporal", ["picture", "product"])
@torch.no_grad()
def test_the_decoder_gives_the_numbers_of_diffusers(svd: Any, temporal: Any) -> None:
    latents, vae = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(1)), copy.deepcopy(svd.vae)
    expected = svd.vae.decode(latents, num_frames=3).sample
    fuse_decoder(vae.decoder, fused_plain, temporal=temporal)
    turn_weights(vae.decoder)
    given = vae.decode(latents, num_frames=3).sample
    assert distance(given, expected) < 1e-5


@torch.no_grad()
def test_in_half_precision_the_unet_is_no_further_from_full_precision_than_diffusers(svd: Any) -> None:
    given, half, fused = inputs(2, 5, 8, 12), copy.deepcopy(svd.unet).half(), copy.deepcopy(svd.unet).half()
    narrow = {name: value.half() if name != "timestep" else value for name, value in given.items()}
    expected = svd.unet(**given, return_dict=False)[0]
    fuse_unet(fused, fused_plain)
    theirs = half(**narrow, return_dict=False)[0]
    ours = fused(**narrow)[0]
    assert ours.dtype == torch.float16
    assert distance(ours.float(), expected) < 1.1 * distance(theirs.float(), expected) < 0.01


def test_weights_keep_their_names_and_bytes(svd: Any) -> None:
    unet = copy.deepcopy(svd.unet)
    sizes = {name: each.untyped_storage().nbytes() for name, each in unet.named_parameters()}
    fuse_unet(unet, fused_plain)
    turn_weights(unet)
    assert {name: each.untyped_storage().nbytes() for name, each in unet.named_parameters()} == sizes
    for name, parameter in svd.unet.named_parameters():
        assert torch.equal(unet.get_parameter(name), parameter)
    assert unet.down_blocks[0].resnets[0].spatial_res_block.conv1.weight.stride(1) == 1


def test_blocks_of_another_make_are_refused(svd: Any) -> None:
    unet = copy.deepcopy(svd.unet)
    unet.down_blocks[0].resnets[0].spatial_res_block.output_scale_factor = 2
    with pytest.raises(ValueError, match="a resnet is of another make"):
        fuse_unet(unet, fused_plain)
    unet = copy.deepcopy(svd.unet)
    unet.mid_block.attentions[0].transformer_blocks[0].norm_type = "ada_norm"
    with pytest.raises(ValueError, match="a transformer is of another make"):
        fuse_unet(unet, fused_plain)


def test_a_cpu_takes_the_plain_operations() -> None:
    assert kernels_for(torch.device("cpu")) is fused_plain


@pytest.mark.parametrize(
    ("frames", "silu", "shifts", "channels", "size"),
    [(1, True, 6, 96, (5, 7)), (3, False, 1, 96, (5, 7)), (3, True, 6, 32, (5, 7)), (2, True, 0, 64, (20, 30))],
    ids=["images", "one shift", "films", "many pixels"],
)
@torch.no_grad()
def test_groups_are_normed(frames: int, silu: bool, shifts: int, channels: int, size: tuple[int, int]) -> None:
    hidden, norm = picture(6, channels, *size, mean=3.0), set_to(nn.GroupNorm(32, channels, eps=1e-5))
    shift = drawn(shifts, channels) if shifts else None
    given = fused_plain.group_norm(hidden, norm, frames=frames, silu=silu, shift=shift)
    assert given.is_contiguous(memory_format=torch.channels_last)
    # In 64 bits: in 32 PyTorch's own is off by 5e-5 where there are many pixels.
    moved = hidden.double() if shift is None else hidden.double() + shift[:, :, None, None]
    expected = norm.double()(moved.unflatten(0, (-1, frames)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    expected = nn.functional.silu(expected) if silu else expected
    torch.testing.assert_close(given, expected.float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_nothing_cancels_far_from_zero() -> None:
    hidden, norm = picture(2, 32, 20, 30, mean=1000.0), set_to(nn.GroupNorm(32, 32))
    given = fused_plain.group_norm(hidden, norm)
    torch.testing.assert_close(given.double(), norm.double()(hidden.double()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shifts", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_two_pictures_are_blended(shifts: int, weighted: bool) -> None:
    hidden, other, shift = picture(3, 96, 5, 30), picture(3, 96, 5, 30, mean=1.0), drawn(shifts, 96)
    weight = torch.tensor([0.3]) if weighted else None
    expected = hidden + (0.3 if weighted else 1.0) * other + shift[:, :, None, None]
    torch.testing.assert_close(fused_plain.blended(hidden, other, shift=shift, weight=weight), expected)


@pytest.mark.parametrize("shifts", [0, 3])
@pytest.mark.parametrize("added", [False, True])
@torch.no_grad()
def test_tokens_are_normed(shifts: int, added: bool) -> None:
    hidden, norm = drawn(21, 80, mean=2.0), set_to(nn.LayerNorm(80))
    other, shift = (drawn(21, 80, mean=1.0) if added else None), (drawn(shifts, 80) if shifts else None)
    moved = hidden + (other if added else 0) + (shift.repeat_interleave(7, dim=0) if shift is not None else 0)
    given = fused_plain.layer_norm(hidden, norm, shift=shift, other=other)
    torch.testing.assert_close(given, norm(moved), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gates() -> None:
    both = 3 * drawn(11, 2 * 300)
    expected = both[:, :300] * nn.functional.gelu(both[:, 300:])
    torch.testing.assert_close(fused_plain.gated(both), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("frames", "size"), [(5, 16), (25, 32), (1, 16), (3, 12)])
@torch.no_grad()
def test_frames_look_at_each_other(frames: int, size: int) -> None:
    clips, pixels, heads = 2, 3, 2
    joined = drawn(clips, frames, pixels, 3, heads, size)
    query, key, value = joined.double().unbind(3)
    scores = torch.einsum("cfphs,cgphs->cphfg", query, key) / size**0.5
    expected = torch.einsum("cphfg,cgphs->cfphs", scores.softmax(-1), value).float()
    given = fused_plain.attend_in_time(joined.reshape(-1, 3 * heads * size), clips=clips, frames=frames, heads=heads)
    torch.testing.assert_close(given, expected.reshape(-1, heads * size), rtol=1e-5, atol=1e-5)
