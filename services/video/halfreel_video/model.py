"""The two models that the server owns, loaded and warm, with the defaults that fit them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from halfreel_runtime.device import Device, find_device
from halfreel_runtime.errors import InvalidArgument
from halfreel_runtime.plan import Profile
from halfreel_video.architecture import Architecture
from halfreel_video.clip import ClipRequest
from halfreel_video.coefficients import shipped, shipped_architecture
from halfreel_video.estimate import Estimate
from halfreel_video.folder import KEYFRAME, SVD, ModelFolder, is_text_to_video, open_folder, refused
from halfreel_video.keyframe import draw_keyframe
from halfreel_video.keyframe_defaults import KeyframeDefaults
from halfreel_video.layout import IMAGE_ENCODER, UNET, VAE, Layout
from halfreel_video.layout import KEYFRAME as KEYFRAME_PART
from halfreel_video.levers import Levers
from halfreel_video.loading import WeightFigures, dtype_for, load_keyframe, load_svd, weight_figures
from halfreel_video.planner import DEFAULT_DECODE_CHUNK, Wish
from halfreel_video.preview import LatentColours
from halfreel_video.pulse import Pulse
from halfreel_video.settings import VideoSettings
from halfreel_video.svd import Denoising, decode, decode_chunk, embed, encode

_WARM_UP_SIDE_PX = 128


@dataclass(frozen=True)
class ClipDefaults:
    """What a request that names nothing gets."""

    width_px: int
    height_px: int
    frame_count: int
    step_count: int
    fps: int
    motion_bucket: int
    guidance_scale: float
    decode_chunk_frame_count: int = DEFAULT_DECODE_CHUNK

    @classmethod
    def of(cls, folder: ModelFolder, clip_frame_count: int) -> ClipDefaults:
        """Takes the model's own halfreel.json; what it lacks is as Stable Video Diffusion XT was trained."""
        given = folder.metadata
        return cls(
            width_px=int(given.get("width_px", 1024)),
            height_px=int(given.get("height_px", 576)),
            frame_count=int(given.get("frame_count", clip_frame_count)),
            step_count=int(given.get("step_count", 25)),
            fps=int(given.get("fps", 7)),
            motion_bucket=int(given.get("motion_bucket", 127)),
            guidance_scale=float(given.get("guidance_scale", 3.0)),
        )


@dataclass(frozen=True)
class VideoModel:
    """Both pipelines and what is known of them; used by the engine's thread alone, but for its figures.

    `clip_frame_count` is the model's own length: the most frames it renders at once.
    """

    svd: Any
    keyframe: Any
    svd_folder: ModelFolder
    keyframe_folder: ModelFolder
    device: Device
    dtype: torch.dtype
    clip_frame_count: int
    defaults: ClipDefaults
    keyframe_defaults: KeyframeDefaults
    colours: LatentColours
    pulse: Pulse
    weights: WeightFigures
    layout: Layout
    architecture: Architecture

    @property
    def dtype_name(self) -> str:
        """The arithmetic, such as "float16"."""
        return str(self.dtype).removeprefix("torch.")


def find_parallel_devices(settings: VideoSettings, device: Device) -> list[Device]:
    """The devices that compute beside the first one.

    Raises:
        InvalidArgument: one is named twice, is of another make, or the model is no image-to-video model.
        FailedPrecondition: this machine has no such device.
    """
    if settings.parallel_devices and is_text_to_video(settings.model):
        raise InvalidArgument("parallel_devices is for image-to-video models; leave it empty.")
    found: list[Device] = []
    for name in settings.parallel_devices:
        other = find_device(name)
        if other in (device, *found):
            raise InvalidArgument(f"parallel_devices names {name}, which computes already; name every device once.")
        if other.name != device.name:
            # Rounding would depend on which of them is free, and the slower one would decide the pace.
            raise InvalidArgument(
                f"parallel_devices names {name} ({other.name}) beside {device.name}; all must be of one make."
            )
        found.append(other)
    return found


def load_model(
    settings: VideoSettings,
    device: Device,
    room_bytes: int = sys.maxsize,
    parallel_devices: Sequence[Device] = (),
) -> VideoModel:
    """Loads both models.

    Args:
        settings: what the server was told.
        device: what the models run on.
        room_bytes: what the server may take of it, without the context.
        parallel_devices: others of the same make that compute beside it.

    Raises:
        NotFound: MODEL_NOT_FOUND.
        FailedPrecondition: MODEL_REFUSED.
    """
    svd_folder, keyframe_folder = open_folder(settings.model, SVD), open_folder(settings.keyframe_model, KEYFRAME)
    torch_device = torch.device(device.torch_name)
    parameter_count = svd_folder.parameter_count() + keyframe_folder.parameter_count()
    dtype = choose_dtype(settings, device, parameter_count, room_bytes)
    # Where not all has room at once, parts come to the device only while they work.
    home = torch_device if parameter_count * dtype.itemsize < room_bytes else torch.device("cpu")
    svd, keyframe = load_svd(svd_folder, dtype, home), load_keyframe(keyframe_folder, dtype, home)
    clip_frame_count = int(svd.unet.config.num_frames)
    if clip_frame_count < 2:
        raise refused(svd_folder.model_id, f"its unet makes {clip_frame_count} frames; it must make 2 or more")
    for folder, pipeline in ((svd_folder, svd), (keyframe_folder, keyframe)):
        if 8 % pipeline.vae_scale_factor:
            raise refused(
                folder.model_id, f"its vae scales by {pipeline.vae_scale_factor}; sizes here are multiples of 8"
            )
    layout = Layout(
        svd,
        keyframe,
        torch_device,
        dtype,
        choose_kernels=settings.fuse_blocks and device.kind == "cuda",
        parallel_devices=[torch.device(each.torch_name) for each in parallel_devices],
    )
    if settings.memory_profile == "saver":
        layout.park_all()
    keyframe_defaults = KeyframeDefaults.of(keyframe_folder, keyframe)
    return VideoModel(
        svd=svd,
        keyframe=keyframe,
        svd_folder=svd_folder,
        keyframe_folder=keyframe_folder,
        device=device,
        dtype=dtype,
        clip_frame_count=clip_frame_count,
        defaults=ClipDefaults.of(svd_folder, clip_frame_count),
        keyframe_defaults=keyframe_defaults,
        colours=LatentColours(svd),
        pulse=Pulse(svd, keyframe, *layout.replicas),
        weights=weight_figures(svd, keyframe),
        layout=layout,
        architecture=Architecture.of(svd, keyframe, layout.blocks, keyframe_defaults),
    )


def choose_dtype(settings: VideoSettings, device: Device, parameter_count: int, room_bytes: int) -> torch.dtype:
    """The arithmetic for a precision.

    "auto" is FP16 on a GPU and FP32 on a CPU, where FP16 is slow; in profile "quality" also on a GPU that has room for
    a clip of the default model in FP32.
    """
    if settings.precision == "auto" and settings.memory_profile == "quality" and device.kind == "cuda":
        clip = Wish(1024, 576, 25, 25, True, True, None, Levers(), Profile.QUALITY, 25)
        estimate = Estimate(Architecture.from_json(shipped_architecture()), shipped("float32"), "float32")
        activations = max(phase.activation_bytes for phase in estimate.phases(clip.shape, Levers()))
        if parameter_count * 4 + activations < room_bytes:
            return torch.float32
    return dtype_for(settings.precision, device.kind)


def warm_up(model: VideoModel, levers: Levers) -> None:
    """Renders two small frames, so that the first request does not pay for choosing and loading kernels.

    Args:
        model: what was loaded.
        levers: those of the clip that is asked for most.
    """
    clip = ClipRequest(
        request_id="warm-up",
        prompt="",
        image=None,
        width_px=_WARM_UP_SIDE_PX,
        height_px=_WARM_UP_SIDE_PX,
        frame_count=2,
        step_count=1,
        fps=model.defaults.fps,
        motion_bucket=model.defaults.motion_bucket,
        guidance_scale=model.defaults.guidance_scale,
        seed=0,
        preview=False,
        levers=levers,
        segment_frame_count=2,
    )
    layout, generator = model.layout, torch.Generator("cpu").manual_seed(clip.seed)
    layout.arrange(levers)
    layout.use(KEYFRAME_PART)
    picture = draw_keyframe(model.keyframe, model.keyframe_defaults, "", clip.width_px, clip.height_px, clip.seed)
    layout.use(IMAGE_ENCODER)
    embeddings = embed(model.svd, picture, clip, layout.device)
    layout.use(VAE)
    conditioning = encode(model.svd, picture, clip, clip.frame_count, generator, embeddings)
    layout.use(UNET)
    denoising = Denoising(model.svd, conditioning, clip, generator)
    denoising.replica = next(iter(layout.parallel()), None)
    denoising.step()
    layout.use(VAE)
    for _ in decode(model.svd, denoising.latents, levers.decode_chunk_frame_count):
        pass
    for replica in layout.parallel():
        try:
            replica.start(partial(decode_chunk, replica, denoising.latents.to(replica.device))).result()
        except Exception as error:  # as in a clip: the others go on
            replica.give_up(error)
