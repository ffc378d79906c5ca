"""The own loops give what diffusers' pipelines give, bit by bit, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from halfreel_runtime.errors import Internal
from halfreel_video.keyframe import draw_keyframe
from halfreel_video.keyframe_defaults import KeyframeDefaults
from halfreel_video.svd import Denoising, decode, encode, upcast


def render(pipeline: Any, picture: Any, clip: Any) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(clip.seed)
    conditioning = encode(pipeline, picture, clip, clip.frame_count, generator)
    denoising = Denoising(pipeline, conditioning, clip, generator)
    for _ in range(denoising.step_count):
        denoising.step()
    return np.concatenate(list(decode(pipeline, denoising.latents, clip.levers.decode_chunk_frame_count)))


@pytest.mark.parametrize(
    ("dtype", "frame_count", "guidance_scale", "chunk"),
    [
        (torch.float32, 5, 1.0, 8),
        (torch.float32, 5, 3.0, 8),
        (torch.float32, 5, 3.0, 2),
        (torch.float16, 2, 3.0, 8),  # slow on a CPU
    ],
)
def test_frames_equal_the_pipelines_own(
    svd: Any,
    picture: Any,
    make_clip: Any,
    dtype: torch.dtype,
    frame_count: int,
    guidance_scale: float,
    chunk: int,
) -> None:
    clip = make_clip(
        frame_count=frame_count,
        step_count=1 if dtype is torch.float16 else 2,
        guidance_scale=guidance_scale,
        decode_chunk_frame_count=chunk,
    )
    svd.to(dtype=dtype)
    try:
        expected = svd(
            picture,
            height=clip.height_px,
            width=clip.width_px,
            num_frames=clip.frame_count,
            num_inference_steps=clip.step_count,
            fps=clip.fps,
            motion_bucket_id=clip.motion_bucket,
            max_guidance_scale=clip.guidance_scale,
            decode_chunk_size=chunk,
            generator=torch.Generator("cpu").manual_seed(clip.seed),
        ).frames[0]
        frames = render(svd, picture, clip)
        assert svd.vae.dtype == dtype
    finally:
        svd.to(dtype=torch.float32)
    assert np.array_equal(frames, np.stack([np.asarray(frame) for frame in expected]))
    assert frames.std() > 1


def test_a_clip_left_in_the_middle_does_not_change_the_next(svd: Any, picture: Any, make_clip: Any) -> None:
    clip = make_clip()
    before = render(svd, picture, clip)
    generator = torch.Generator("cpu").manual_seed(99)
    left = Denoising(svd, encode(svd, picture, clip, 5, generator), make_clip(step_count=9), generator)
    left.step()
    assert np.array_equal(render(svd, picture, clip), before)


def test_steps_of_two_clips_may_alternate(svd: Any, picture: Any, make_clip: Any) -> None:
    clip = make_clip()
    pairs = []
    for seed in (clip.seed, 77):
        generator = torch.Generator("cpu").manual_seed(seed)
        pairs.append(Denoising(svd, encode(svd, picture, clip, 5, generator), clip, generator))
    for _ in range(clip.step_count):
        for denoising in pairs:
            denoising.step()
    frames = np.concatenate(list(decode(svd, pairs[0].latents, 8)))
    assert np.array_equal(frames, render(svd, picture, clip))


def test_nan_in_a_step_is_an_error_that_names_the_dtype(
    svd: Any, picture: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = svd.unet.conv_out.bias
    monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
    with pytest.raises(Internal) as caught:
        render(svd, picture, make_clip())
    assert caught.value.reason == "NAN_DETECTED"
    assert caught.value.metadata == {"dtype": "float32", "where": "denoising step 1"}


def test_nan_in_decoding_is_an_error(svd: Any, picture: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bias = svd.vae.decoder.conv_in.bias
    monkeypatch.setattr(bias, "data", torch.full_like(bias, float("inf")))
    with pytest.raises(Internal, match="decoding, in float32"):
        render(svd, picture, make_clip())


def test_the_vae_comes_back_to_fp16_after_a_failure(svd: Any) -> None:
    svd.vae.to(torch.float16)
    try:
        with pytest.raises(MemoryError), upcast(svd.vae):
            assert svd.vae.dtype == torch.float32
            raise MemoryError
        assert {parameter.dtype for parameter in svd.vae.parameters()} == {torch.float16}
    finally:
        svd.vae.to(torch.float32)


def test_a_vae_that_can_t_be_brought_to_fp32_is_as_it_was(svd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    svd.vae.to(torch.float16)
    before = [(parameter, parameter.data.data_ptr()) for parameter in svd.vae.parameters()]

    def half_way(module: torch.nn.Module, dtype: torch.dtype) -> None:
        for parameter, _ in before[: len(before) // 2]:
            parameter.data = parameter.data.to(dtype)
        raise MemoryError

    monkeypatch.setattr(torch.nn.Module, "to", half_way)
    try:
        with pytest.raises(MemoryError), upcast(svd.vae):
            pass
        assert all(parameter.data.data_ptr() == place for parameter, place in before)
    finally:
        monkeypatch.undo()
        svd.vae.to(torch.float32)


def test_keyframe_equals_the_pipelines_own(keyframe: Any) -> None:
    defaults = KeyframeDefaults(width_px=64, height_px=64, step_count=3, guidance_scale=2.0)
    expected = keyframe(
        "a red circle",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(4),
    ).images[0]
    drawn = draw_keyframe(keyframe, defaults, "a red circle", 64, 64, 4)
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))


def test_a_stopped_keyframe_does_not_change_the_next(keyframe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = KeyframeDefaults(width_px=64, height_px=64, step_count=3, guidance_scale=2.0)
    first = draw_keyframe(keyframe, defaults, "a circle", 96, 64, 4)
    original, calls = keyframe.unet.forward, []

    def stop_at_the_second(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError
        return original(*arguments, **named)

    with monkeypatch.context() as stopped:
        stopped.setattr(keyframe.unet, "forward", stop_at_the_second)
        with pytest.raises(InterruptedError):
            draw_keyframe(keyframe, defaults, "a circle", 96, 64, 4)
    again = draw_keyframe(keyframe, defaults, "a circle", 96, 64, 4)
    assert first.size == (96, 64)
    assert np.array_equal(np.asarray(first), np.asarray(again))


@pytest.mark.parametrize(
    ("native", "clip", "drawn"),
    [
        ((512, 512), (1024, 576), (680, 384)),
        ((512, 512), (64, 64), (512, 512)),
        ((128, 96), (128, 96), (128, 96)),
        ((128, 96), (192, 144), (128, 96)),
        ((64, 64), (2048, 64), (360, 8)),
    ],
)
def test_keyframes_are_drawn_at_the_models_area_and_the_clips_shape(
    native: tuple[int, int], clip: tuple[int, int], drawn: tuple[int, int]
) -> None:
    assert KeyframeDefaults(*native, step_count=1, guidance_scale=0.0).size_for(*clip) == drawn
