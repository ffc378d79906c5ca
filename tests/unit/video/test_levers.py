"""Every lever gives the same clip, leaves nothing behind, and survives whatever stops it."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
import torch

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import Cancelled, OutOfMemory
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video import fused_plain
from halfreel_video.attention import SlicedAttention, xformers_problem
from halfreel_video.events import ClipDone, StepDone
from halfreel_video.feed_forward import FeedForwardChunks
from halfreel_video.fused_blocks import FusedBlocks
from halfreel_video.job import ClipJob
from halfreel_video.layout import IMAGE_ENCODER, KEYFRAME, UNET, VAE
from halfreel_video.levers import Levers
from halfreel_video.model import VideoModel
from halfreel_video.streaming import unet_blocks

SAVER = {
    "split_guidance": True,
    "feed_forward_chunk_count": 8,
    "offload_idle_parts": True,
    "stream_weights": True,
    "decode_chunk_frame_count": 1,
}


@pytest.fixture(scope="module")
def memory(model: VideoModel) -> MemoryMonitor:
    return MemoryMonitor(model.device)


@pytest.fixture
def run(model: VideoModel, memory: MemoryMonitor, make_clip: Any) -> Any:
    def done(token: CancelToken | None = None, **changes: Any) -> ClipDone:
        events = list(ClipJob(model, make_clip(**changes), memory).steps(token or CancelToken()))
        assert isinstance(events[-1], ClipDone)
        return events[-1]

    return done


def frames_of(mp4: bytes) -> np.ndarray:
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def starving(times: int, original: Any) -> Any:
    """Fails like the allocator so many times, then works."""
    left = [times]

    def call(*arguments: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has ...")
        return original(*arguments, **named)

    return call


@pytest.mark.parametrize(
    "levers",
    [
        {"offload_idle_parts": True},
        {"stream_weights": True},
        {"offload_idle_parts": True, "stream_weights": True},
        {"feed_forward_chunk_count": 1},
        {"attention_backend": "xformers"},  # not to be had on a CPU
    ],
    ids=str,
)
def test_levers_that_only_move_weights_change_no_bit(run: Any, levers: dict[str, Any]) -> None:
    expected = run(guidance_scale=2.0)
    done = run(guidance_scale=2.0, **levers)
    assert done.mp4 == expected.mp4
    assert done.rungs == ()
    for name, value in levers.items():
        assert getattr(done.levers, name) == (value if value != "xformers" else "sdpa")
    assert run(guidance_scale=2.0).mp4 == expected.mp4


@pytest.mark.parametrize(
    "levers",
    [
        {"split_guidance": True},
        {"feed_forward_chunk_count": 3},
        {"feed_forward_chunk_count": 64},
        {"attention_backend": "sliced"},
        SAVER | {"decode_chunk_frame_count": 8},
    ],
    ids=str,
)
def test_levers_that_cut_the_work_change_it_by_rounding_alone(run: Any, levers: dict[str, Any]) -> None:
    expected, found = run(guidance_scale=2.0).mp4, run(guidance_scale=2.0, **levers).mp4
    assert np.abs(frames_of(found) - frames_of(expected)).mean() <= 1  # of 255, through a lossy codec
    assert run(guidance_scale=2.0, **levers).mp4 == found


def test_blocks_are_streamed_in_the_order_in_which_they_run(model: VideoModel, run: Any) -> None:
    order: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, index=index: order.append(index))
        for index, block in enumerate(unet_blocks(model.svd.unet))
    ]
    run(step_count=1)
    for hook in hooks:
        hook.remove()
    assert order == list(range(len(hooks)))
    inside = {id(parameter) for block in unet_blocks(model.svd.unet) for parameter in block.parameters()}
    outside = sum(each.numel() for each in model.svd.unet.parameters() if id(each) not in inside)
    assert outside < 0.15 * sum(each.numel() for each in model.svd.unet.parameters())


def test_streamed_weights_are_in_the_ring_alone(model: VideoModel) -> None:
    model.layout.arrange(Levers(**SAVER))
    model.layout.use(UNET)
    blocks = unet_blocks(model.svd.unet)
    places = {next(block.parameters()).untyped_storage().data_ptr() for block in blocks}
    assert len(places) == 3
    sizes = [weights.size_bytes for weights in model.layout._weights[UNET][1:]]
    ring = [max(sizes[slot::3]) for slot in range(3)]
    assert model.layout._stream is not None
    assert model.layout._stream.size_bytes == sum(ring) < sum(sizes)


def test_feed_forward_layers_run_in_so_many_parts_on_any_number_of_tokens() -> None:
    from diffusers.models.attention import FeedForward

    torch.manual_seed(0)
    layer = FeedForward(32)
    chunks, seen = FeedForwardChunks(torch.nn.ModuleList([layer])), []
    layer.net[0].register_forward_hook(lambda _module, given, _result: seen.append(len(given[0])))
    tokens = torch.randn(3, 7, 32)
    with torch.no_grad():
        whole = layer(tokens)
        for count, sizes in ((2, [11, 10]), (8, [3] * 7), (64, [1] * 21)):
            seen.clear()
            chunks.count = count
            torch.testing.assert_close(layer(tokens), whole)
            assert seen == sizes


def test_sliced_attention_sees_whole_rows_alone(model: VideoModel) -> None:
    attention = next(
        module for name, module in model.svd.unet.named_modules() if name.endswith("attn1") and hasattr(module, "to_q")
    )
    rows = torch.randn(11, 6, attention.to_q.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = attention.processor(attention, rows)
        torch.testing.assert_close(SlicedAttention(4)(attention, rows), whole)


def test_xformers_is_told_why_it_is_not_used(model: VideoModel) -> None:
    assert xformers_problem(torch.device("cpu"), torch.float32) == "xformers needs a GPU"
    assert model.layout.attention.xformers_problem == "xformers needs a GPU"


def test_a_stopped_streamed_clip_does_not_change_the_next(
    run: Any, make_clip: Any, model: VideoModel, memory: Any
) -> None:
    expected = run(**SAVER).mp4
    token = CancelToken()
    with pytest.raises(Cancelled):
        for event in ClipJob(model, make_clip(**SAVER, seed=99), memory).steps(token):
            if isinstance(event, StepDone):
                token.cancel()
    assert run(**SAVER).mp4 == expected


def test_fused_blocks_run_where_they_were_tried_and_a_clip_says_so(
    run: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run()
    monkeypatch.setattr(model.layout, "fused", FusedBlocks(model.svd, lambda: fused_plain))
    assert run(compiled=True).levers == plain.levers == Levers()
    assert model.layout.check_next()  # both models are here: a piece is tried, and no clip runs by it
    assert run(compiled=True).levers == Levers()
    while model.layout.check_next():
        pass
    assert model.layout.fused.problem == ""
    done = run(compiled=True)
    assert done.levers == Levers(compiled=True)
    assert abs(frames_of(done.mp4).astype(int) - frames_of(plain.mp4)).mean() < 0.5  # of 255, in an MP4
    assert run().mp4 == plain.mp4  # nothing is left of it
    assert run(compiled=True, feed_forward_chunk_count=2).levers == Levers(feed_forward_chunk_count=2)
    monkeypatch.setattr(model.svd.unet, "forward", starving(1, model.svd.unet.forward))
    saved = run(compiled=True)
    assert "compiled_false" in saved.rungs
    assert not model.layout.levers.compiled


def test_fused_blocks_are_tried_also_where_parts_idle_off_the_device(
    run: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = model.layout
    monkeypatch.setattr(layout, "fused", FusedBlocks(model.svd, lambda: fused_plain))
    run(offload_idle_parts=True)
    layout.park_all()

    def no_room(name: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as full:
        full.setattr(layout, "_bring", no_room)
        assert layout.check_next() is None
    assert layout.check_next() is None  # it is not tried again before another clip has run
    assert not layout.fused.ready
    run(offload_idle_parts=True)
    layout.park_all()
    while layout.check_next():
        assert not layout.is_here(UNET)  # they leave again
    assert layout.fused.ready
    assert not layout.is_here(VAE)
    assert run(offload_idle_parts=True, compiled=True).levers == Levers(offload_idle_parts=True, compiled=True)
    streamed = run(stream_weights=True)
    monkeypatch.setattr(layout, "fused", FusedBlocks(model.svd, lambda: fused_plain))
    while layout.check_next():
        pass
    assert layout.fused.ready
    assert run(stream_weights=True).mp4 == streamed.mp4


def test_a_shortage_while_fused_blocks_are_tried_does_not_end_them(
    run: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = model.layout
    monkeypatch.setattr(layout, "fused", FusedBlocks(model.svd, lambda: fused_plain))
    run()
    with monkeypatch.context() as starved:
        starved.setattr(model.svd.unet, "forward", starving(1, model.svd.unet.forward))
        assert layout.check_next() is None
    assert (layout.fused.problem, layout.fused.is_pending) == ("", True)
    run()
    while layout.check_next():
        pass
    assert layout.fused.ready


def test_out_of_memory_in_decoding_keeps_the_latents(
    run: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, steps = frames_of(run().mp4), []
    forward = model.svd.unet.forward
    monkeypatch.setattr(model.svd.unet, "forward", lambda *a, **n: (steps.append(1), forward(*a, **n))[1])
    for times, rungs in (
        (1, ("decode_chunk_4",)),
        (3, ("decode_chunk_4", "decode_chunk_2", "decode_chunk_1")),
        (4, ("decode_chunk_4", "decode_chunk_2", "decode_chunk_1", "unet_off")),
        (5, ("decode_chunk_4", "decode_chunk_2", "decode_chunk_1", "unet_off", "decode_on_cpu")),
    ):
        steps.clear()
        with monkeypatch.context() as starved:
            starved.setattr(model.svd.vae, "decode", starving(times, model.svd.vae.decode))
            done = run()
        assert done.rungs == rungs
        assert len(steps) == 2  # none of them twice
        assert done.levers == Levers()
        assert np.abs(frames_of(done.mp4) - expected).mean() < 30  # the chunk changes pixels; it is the same clip
    assert (frames_of(run().mp4) == expected).all()


def test_out_of_memory_in_a_step_pulls_the_other_levers_once(
    run: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(guidance_scale=2.0)
    with monkeypatch.context() as starved:
        starved.setattr(model.svd.unet, "forward", starving(1, model.svd.unet.forward))
        done = run(guidance_scale=2.0)
    assert done.rungs == ("split_guidance", "feed_forward_chunk_count_8", "offload_idle_parts", "stream_weights")
    assert np.abs(frames_of(done.mp4) - frames_of(expected.mp4)).mean() <= 1
    with monkeypatch.context() as starved:
        starved.setattr(model.svd.unet, "forward", starving(2, model.svd.unet.forward))
        with pytest.raises(OutOfMemory, match="1073741824 more bytes were needed"):
            run(guidance_scale=2.0)
    assert run(guidance_scale=2.0).mp4 == expected.mp4


@pytest.mark.parametrize(("owner", "part"), [("keyframe", "unet"), ("svd", "image_encoder")])
def test_out_of_memory_before_denoising_offloads_and_draws_the_same(
    run: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch, owner: str, part: str
) -> None:
    expected = run()
    module = getattr(getattr(model, owner), part)
    with monkeypatch.context() as starved:
        starved.setattr(module, "forward", starving(1, module.forward))
        done = run()
    assert done.rungs == ("offload_idle_parts",)
    assert done.mp4 == expected.mp4
    assert run().mp4 == expected.mp4


@pytest.mark.parametrize("name", [KEYFRAME, IMAGE_ENCODER, UNET, VAE])
def test_out_of_memory_while_a_part_comes_back_is_survived(
    run: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = run().mp4
    model.layout.park_all()
    with monkeypatch.context() as starved:
        weights = model.layout._weights[name][-1]
        starved.setattr(weights, "load", starving(99, weights.load))
        if name == UNET:  # its blocks can be streamed instead
            assert "stream_weights" in run(offload_idle_parts=True).rungs
        else:
            with pytest.raises(OutOfMemory):
                run(offload_idle_parts=True)
    assert run().mp4 == expected


def test_many_shortages_end_no_server_and_hurt_no_other_clip(
    run: Any, model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(step_count=1, frame_count=2).mp4
    places = [
        (model.keyframe.unet, "forward"),
        (model.svd.image_encoder, "forward"),
        (model.svd.unet, "forward"),
        (model.svd.vae, "decode"),
    ]
    for index in range(40):
        module, name = places[index % len(places)]
        with monkeypatch.context() as starved:
            starved.setattr(module, name, starving(1 + index % 6, getattr(module, name)))
            try:
                run(step_count=1, frame_count=2)
            except OutOfMemory:
                # One rung before decoding; five there.
                assert index % 6 >= (5 if index % len(places) == 3 else 1)
    assert run(step_count=1, frame_count=2).mp4 == expected


@pytest.fixture
def half(model: VideoModel, folders: Any) -> VideoModel:
    """The same models in BF16, whose numbers a CPU takes."""
    from halfreel_runtime.device import find_device
    from halfreel_video.model import load_model
    from halfreel_video.settings import VideoSettings

    settings = VideoSettings(model=str(folders[0]), keyframe_model=str(folders[1]), device="cpu", precision="bf16")
    return load_model(settings, find_device("cpu"))


@pytest.mark.parametrize("part", ["unet", "vae", "keyframe"])
def test_numbers_that_overflow_are_computed_again_in_fp32(
    half: VideoModel, memory: MemoryMonitor, make_clip: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    module = {"unet": half.svd.unet, "vae": half.svd.vae, "keyframe": half.keyframe.unet}[part]
    name = "decode" if part == "vae" else "forward"
    original, seen = getattr(module, name), []

    def overflow(*arguments: Any, **named: Any) -> Any:
        dtype = next(module.parameters()).dtype
        seen.append(dtype)
        result = original(*arguments, **named)
        if dtype == torch.bfloat16:
            first = result[0] if isinstance(result, tuple) else result.sample
            first.fill_(float("inf"))
        return result

    monkeypatch.setattr(module, name, overflow)
    clip = make_clip(frame_count=2)
    done = list(ClipJob(half, clip, memory).steps(CancelToken()))[-1]
    assert isinstance(done, ClipDone)
    assert done.nan_retry_count == 1
    switched = seen.index(torch.float32)
    assert switched > 0
    assert set(seen[switched:]) == {torch.float32}
    assert not half.layout.changed
    assert next(module.parameters()).dtype == torch.bfloat16
    monkeypatch.undo()
    again = list(ClipJob(half, clip, memory).steps(CancelToken()))[-1]
    assert again.nan_retry_count == 0
