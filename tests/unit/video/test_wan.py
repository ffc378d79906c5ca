"""The text-to-video loops give what diffusers' pipeline gives, bit by bit, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_video import save_wan

from halfreel_video.folder import WAN, open_folder
from halfreel_video.loading import load_wan
from halfreel_video.svd import NanDetected
from halfreel_video.wan import WanDenoising, decode, read_words, rendered_frame_count


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_wan(tmp_path_factory.mktemp("wan"))
    return load_wan(open_folder(str(folder), WAN), torch.float32, torch.device("cpu"))


def render(wan: Any, clip: Any) -> np.ndarray:
    words = read_words(wan, clip, 16)
    denoising = WanDenoising(wan, words, clip, torch.Generator().manual_seed(clip.seed))
    for _ in range(denoising.step_count):
        denoising.step()
    return np.concatenate(list(decode(wan, denoising.latents)))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("step_count", [1, 4])
def test_frames_equal_the_pipelines_own(wan: Any, make_clip: Any, guidance_scale: float, step_count: int) -> None:
    clip = make_clip(width_px=96, frame_count=9, step_count=step_count, guidance_scale=guidance_scale)
    expected = wan(
        clip.prompt,
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=step_count,
        guidance_scale=guidance_scale,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(clip.seed),
        output_type="pil",
    ).frames[0]
    frames = render(wan, clip)
    assert frames.shape == (9, 64, 96, 3)
    assert frames.std() > 1
    assert np.array_equal(frames, np.stack([np.asarray(frame) for frame in expected]))


def test_a_clip_left_in_the_middle_does_not_change_the_next(wan: Any, make_clip: Any) -> None:
    clip = make_clip(frame_count=5)
    before = render(wan, clip)
    left = WanDenoising(wan, read_words(wan, clip, 16), make_clip(step_count=9), torch.Generator().manual_seed(9))
    left.step()
    frames = decode(wan, left.latents)
    next(frames)
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert np.array_equal(render(wan, clip), before)
    assert not np.array_equal(render(wan, make_clip(frame_count=5, seed=6)), before)


@pytest.mark.parametrize(("asked", "rendered"), [(2, 5), (5, 5), (6, 9), (9, 9), (48, 49), (81, 81)])
def test_frames_are_rendered_in_fours_and_one(wan: Any, asked: int, rendered: int) -> None:
    assert rendered_frame_count(wan, asked) == rendered


@pytest.mark.parametrize("bad_pass", [1, 4])
def test_a_step_without_numbers_can_be_done_again(
    wan: Any, make_clip: Any, monkeypatch: pytest.MonkeyPatch, bad_pass: int
) -> None:
    clip = make_clip(frame_count=5, step_count=4)
    expected = WanDenoising(wan, read_words(wan, clip, 16), clip, torch.Generator().manual_seed(1))
    for _ in range(4):
        expected.step()
    passes, original = [], wan.transformer.forward

    def sometimes_nan(*arguments: Any, **named: Any) -> Any:
        passes.append(1)
        (noise,) = original(*arguments, **named)
        return (noise * float("nan") if len(passes) == bad_pass else noise,)

    monkeypatch.setattr(wan.transformer, "forward", sometimes_nan)
    denoising, failed = WanDenoising(wan, read_words(wan, clip, 16), clip, torch.Generator().manual_seed(1)), []
    while len(passes) < 5:
        try:
            denoising.step()
        except NanDetected as error:
            failed.append(error.metadata["where"])
    assert failed == [f"denoising step {bad_pass}"]
    assert torch.equal(denoising.latents, expected.latents)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = save_wan(tmp_path)
    index = folder / "model_index.json"
    text = index.read_text()
    index.write_text(text.replace('"expand_timesteps": false', '"expand_timesteps": true'))
    with pytest.raises(Exception, match="expand_timesteps") as caught:
        open_folder(str(folder), WAN)
    assert caught.value.reason == "MODEL_REFUSED"  # type: ignore[attr-defined]  # a HalfreelError
