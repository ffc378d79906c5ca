"""A clip on several devices has the bytes of one whose halves of guidance run one after the other, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_video import save_wan

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import CPU, Device, find_device
from halfreel_runtime.errors import Cancelled, InvalidArgument
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video.job import ClipJob
from halfreel_video.model import VideoModel, find_parallel_devices, load_model, warm_up
from halfreel_video.settings import VideoSettings
from halfreel_video.sleeping import SleepingVideo
from halfreel_video.svd import Denoising, encode
from halfreel_video.trades import TRADES


def load(folders: tuple[Path, Path], replica_count: int) -> VideoModel:
    settings = VideoSettings(model=str(folders[0]), keyframe_model=str(folders[1]), device="cpu", fuse_blocks=True)
    return load_model(settings, find_device("cpu"), parallel_devices=[CPU] * replica_count)


@pytest.fixture(scope="module")
def alone(folders: tuple[Path, Path]) -> VideoModel:
    return load(folders, 0)


@pytest.fixture
def parallel(folders: tuple[Path, Path]) -> VideoModel:
    return load(folders, 1)


@pytest.fixture
def clip(make_clip: Any) -> Any:
    values = {"guidance_scale": 3.0, "step_count": 3, "decode_chunk_frame_count": 2, "split_guidance": True}
    return lambda **changes: make_clip(**(values | changes))


def render(model: VideoModel, request: Any, token: CancelToken | None = None) -> Any:
    job = ClipJob(model, request, MemoryMonitor(model.device))
    *_, done = job.steps(token or CancelToken())
    return done


def latents(model: VideoModel, request: Any, picture: Image.Image) -> torch.Tensor:
    """A clip's latents to the last bit, which its pixels may hide; with a replica where there is one."""
    model.layout.arrange(request.levers)
    generator = torch.Generator().manual_seed(request.seed)
    conditioning = encode(model.svd, picture, request, request.frame_count, generator)
    denoising = Denoising(model.svd, conditioning, request, generator)
    denoising.replica = next(iter(model.layout.parallel()), None)
    while denoising.done_count < denoising.step_count:
        denoising.step()
    return denoising.latents


def passes(part: Any) -> list[str]:
    """Counts a part's passes from now on, by the thread that runs them."""
    seen: list[str] = []
    part.register_forward_pre_hook(lambda *_: seen.append(threading.current_thread().name))
    return seen


def failing(part: Any, error: Callable[[], Exception], after: int = 0) -> None:
    calls = iter(range(1000))

    def fail(*_: Any) -> None:
        if next(calls) == after:
            raise error()

    part.register_forward_pre_hook(fail)


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize("replica_count", [1, 3])
def test_the_same_bytes_on_any_number_of_devices(
    folders: tuple[Path, Path], alone: VideoModel, replica_count: int, clip: Any
) -> None:
    expected = render(alone, clip())
    model = load(folders, replica_count)
    first, *others = model.layout.replicas
    model.layout.bring_all()
    here, there, rest = passes(model.svd.unet), passes(first.unet), [passes(each.unet) for each in others]
    decoders = [passes(each.vae.decoder) for each in model.layout.replicas]
    done = render(model, clip(split_guidance=False))
    assert done.sha256 == expected.sha256
    assert done.levers == expected.levers  # which say so
    assert (len(here), len(there), rest) == (3, 3, [[]] * (replica_count - 1))
    assert set(there) == {"replica-cpu"}
    # Three chunks: two here and one there, or each on a device of its own.
    assert [len(each) for each in decoders] == [1, 1, 0][:replica_count]
    assert done.rungs == ()


def test_the_same_latents_to_the_last_bit(
    alone: VideoModel, parallel: VideoModel, clip: Any, picture: Image.Image
) -> None:
    parallel.layout.bring_all()
    there = passes(parallel.layout.replicas[0].unet)
    assert torch.equal(latents(parallel, clip(), picture), latents(alone, clip(), picture))
    assert len(there) == 3


@pytest.mark.parametrize("trades", [(each,) for each in TRADES] + [TRADES])
def test_trades_and_chained_clips_too(
    alone: VideoModel, parallel: VideoModel, trades: tuple[str, ...], clip: Any
) -> None:
    request = clip(trades=trades, step_count=6, frame_count=9)
    assert render(parallel, request).sha256 == render(alone, request).sha256


def test_without_guidance_the_replica_only_decodes(alone: VideoModel, parallel: VideoModel, clip: Any) -> None:
    request = clip(guidance_scale=1.0)
    parallel.layout.bring_all()
    there, decoded = passes(parallel.layout.replicas[0].unet), passes(parallel.layout.replicas[0].vae.decoder)
    assert render(parallel, request).sha256 == render(alone, request).sha256
    assert (len(there), len(decoded)) == (0, 1)


@pytest.mark.parametrize("lever", ["stream_weights", "offload_idle_parts"])
def test_weights_that_move_are_no_work_for_a_replica(
    alone: VideoModel, parallel: VideoModel, lever: str, clip: Any
) -> None:
    render(parallel, clip())
    there = passes(parallel.layout.replicas[0].unet)
    request = clip(**{lever: True})
    assert render(parallel, request).sha256 == render(alone, request).sha256
    assert there == []


def test_fused_blocks_run_on_all_devices_or_the_clip_on_one(
    alone: VideoModel, parallel: VideoModel, clip: Any, picture: Image.Image
) -> None:
    layout, (replica,) = parallel.layout, parallel.layout.replicas
    layout.bring_all()
    there = passes(replica.unet)
    for each in (alone.layout, layout):
        each.arrange(clip().levers)  # only what is here can be tried
        while each.check_next():
            pass
    expected, plain = (latents(alone, clip(compiled=each), picture) for each in (True, False))
    assert not torch.equal(expected, plain)
    del there[:]
    assert torch.equal(latents(parallel, clip(compiled=True), picture), expected)
    assert there == []  # its own were not tried yet
    pieces = 1
    while replica.check_next():
        pieces += 1
    assert (pieces, replica.fused.ready) == (4, True)
    del there[:]
    assert torch.equal(latents(parallel, clip(compiled=True), picture), expected)
    assert len(there) == 3
    assert torch.equal(latents(parallel, clip(), picture), plain)
    assert len(there) == 6
    assert render(parallel, clip(compiled=True)).sha256 == render(alone, clip(compiled=True)).sha256


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_replica_that_runs_out_of_memory_is_left_out_for_one_clip(
    alone: VideoModel, parallel: VideoModel, part: str, after: int, clip: Any
) -> None:
    (replica,) = parallel.layout.replicas
    parallel.layout.bring_all()
    request = clip(decode_chunk_frame_count=1)
    expected = render(alone, request)
    failing(replica.unet if part == "unet" else replica.vae.decoder, out_of_memory, after)
    done = render(parallel, request)
    assert (done.sha256, done.rungs) == (expected.sha256, ("replica_off",))
    assert not replica.usable
    assert replica.size_bytes == 0
    assert "out of memory" in replica.problem
    there = passes(replica.unet)
    again = render(parallel, request)
    assert (again.sha256, again.rungs, len(there)) == (expected.sha256, (), 3)


def test_a_replica_that_fails_otherwise_is_left_out_for_good(
    alone: VideoModel, parallel: VideoModel, clip: Any
) -> None:
    (replica,) = parallel.layout.replicas
    failing(replica.unet, lambda: RuntimeError("CUDA error: an illegal memory access was encountered"))
    expected = render(alone, clip())
    for _ in range(2):
        done = render(parallel, clip())
        assert (done.sha256, done.rungs, replica.usable) == (expected.sha256, ("replica_off",), False)


def test_no_room_for_a_replica(
    alone: VideoModel, parallel: VideoModel, monkeypatch: pytest.MonkeyPatch, clip: Any
) -> None:
    (replica,) = parallel.layout.replicas
    with monkeypatch.context() as patched:
        patched.setattr(type(replica), "_wait", lambda _: (_ for _ in ()).throw(out_of_memory()))
        done = render(parallel, clip())
    assert (done.sha256, done.rungs) == (render(alone, clip()).sha256, ("replica_off",))
    render(parallel, clip())
    assert replica.usable


def test_memory_that_runs_out_here_is_saved_here(alone: VideoModel, parallel: VideoModel, clip: Any) -> None:
    parallel.layout.bring_all()
    failing(parallel.svd.unet, out_of_memory, 1)
    done = render(parallel, clip())
    assert {"stream_weights", "offload_idle_parts"} <= set(done.rungs)
    assert done.sha256
    assert render(parallel, clip()).sha256 == render(alone, clip()).sha256  # and the next one is as if nothing had been


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_cancelled_clip_ends_within_a_block_on_both(
    alone: VideoModel, parallel: VideoModel, where: str, clip: Any
) -> None:
    (replica,) = parallel.layout.replicas
    parallel.layout.bring_all()
    token = CancelToken()
    unet = parallel.svd.unet if where == "here" else replica.unet
    late = passes(unet.up_blocks[-1].resnets[-1])
    handle = unet.mid_block.resnets[0].register_forward_pre_hook(lambda *_: token.cancel())
    with pytest.raises(Cancelled):
        render(parallel, clip(), token)
    handle.remove()
    assert late == []
    assert replica.usable
    assert render(parallel, clip()).sha256 == render(alone, clip()).sha256


@pytest.mark.parametrize("where", ["here", "there"])
def test_numbers_that_are_none_are_computed_again_on_one_device(parallel: VideoModel, where: str, clip: Any) -> None:
    (replica,) = parallel.layout.replicas
    parallel.layout.dtype = torch.bfloat16  # else there is nothing more precise; the weights are what they are
    parallel.layout.bring_all()
    there = passes(replica.unet)
    unet = parallel.svd.unet if where == "here" else replica.unet
    broken = iter([True])
    unet.conv_out.register_forward_hook(lambda _m, _i, out: out * float("nan") if next(broken, False) else None)
    done = render(parallel, clip())
    assert done.nan_retry_count == 1
    assert len(there) == 1
    assert replica.usable  # for the next clip


def test_sleep_takes_the_replica_off_its_device_and_wake_brings_it_back(
    alone: VideoModel, parallel: VideoModel, clip: Any
) -> None:
    (replica,) = parallel.layout.replicas
    render(parallel, clip())
    sleeping = SleepingVideo(parallel)
    sleeping.prepare_sleep()
    sleeping.sleep()
    assert (replica.size_bytes, replica.usable) == (0, False)
    sleeping.wake()
    assert replica.usable
    assert render(parallel, clip()).sha256 == render(alone, clip()).sha256


def test_warm_up_warms_the_replica(parallel: VideoModel, clip: Any) -> None:
    parallel.layout.bring_all()
    there, decoded = passes(parallel.layout.replicas[0].unet), passes(parallel.layout.replicas[0].vae.decoder)
    warm_up(replace(parallel, defaults=replace(parallel.defaults, guidance_scale=3.0)), clip().levers)
    assert (len(there), len(decoded)) == (1, 1)


H200 = Device("cuda", 0, "GPU-a", "NVIDIA H200", "cuda:0")


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("cuda:1,cuda:0", "names cuda:0, which computes already"),
        ("cuda:1,cuda:1", "names cuda:1, which computes already"),
        ("cuda:1,cuda:2", r"cuda:2 \(NVIDIA L4\) beside NVIDIA H200"),
    ],
)
def test_devices_that_can_not_compute_beside_the_first(monkeypatch: pytest.MonkeyPatch, named: str, told: str) -> None:
    others = {
        "cuda:0": H200,
        "cuda:1": replace(H200, index=1, gpu_uuid="GPU-b", torch_name="cuda:1"),
        "cuda:2": replace(H200, index=2, gpu_uuid="GPU-c", torch_name="cuda:2", name="NVIDIA L4"),
    }
    monkeypatch.setattr("halfreel_video.model.find_device", others.__getitem__)
    assert find_parallel_devices(VideoSettings(parallel_devices="cuda:1"), H200) == [others["cuda:1"]]
    with pytest.raises(InvalidArgument, match=told):
        find_parallel_devices(VideoSettings(parallel_devices=named), H200)


def test_a_text_to_video_model_runs_on_one_device(tmp_path: Path) -> None:
    settings = VideoSettings(model=str(save_wan(tmp_path)), parallel_devices="cuda:1")
    with pytest.raises(InvalidArgument, match="image-to-video"):
        find_parallel_devices(settings, H200)


@pytest.fixture(autouse=True)
def _no_thread_is_left_at_work() -> Iterator[None]:
    yield
    assert not [each for each in threading.enumerate() if each.name.startswith("mp4")]
