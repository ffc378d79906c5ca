"""The two models that the server owns, loaded and warm, with the defaults that fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from halfreel_runtime.device import Device
from halfreel_video.clip import ClipRequest
from halfreel_video.folder import KEYFRAME, SVD, ModelFolder, open_folder, refused
from halfreel_video.keyframe import KeyframeDefaults, draw_keyframe
from halfreel_video.loading import WeightFigures, dtype_for, load_keyframe, load_svd, weight_figures
from halfreel_video.preview import LatentColours
from halfreel_video.pulse import Pulse
from halfreel_video.settings import VideoSettings
from halfreel_video.svd import Denoising, decode, encode

# diffusers' own choice where it is asked for nothing; measured as fast as any on the default model.
ATTENTION_BACKEND = "sdpa"
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
    decode_chunk_frame_count: int = 8

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

    @property
    def dtype_name(self) -> str:
        """The arithmetic, such as "float16"."""
        return str(self.dtype).removeprefix("torch.")


def load_model(settings: VideoSettings, device: Device) -> VideoModel:
    """Loads both models.

    Raises:
        NotFound: MODEL_NOT_FOUND.
        FailedPrecondition: MODEL_REFUSED.
    """
    svd_folder, keyframe_folder = open_folder(settings.model, SVD), open_folder(settings.keyframe_model, KEYFRAME)
    dtype, torch_device = dtype_for(settings.precision, device.kind), torch.device(device.torch_name)
    svd = load_svd(svd_folder, dtype, torch_device)
    keyframe = load_keyframe(keyframe_folder, dtype, torch_device)
    clip_frame_count = int(svd.unet.config.num_frames)
    if clip_frame_count < 2:
        raise refused(svd_folder.model_id, f"its unet makes {clip_frame_count} frames; it must make 2 or more")
    for folder, pipeline in ((svd_folder, svd), (keyframe_folder, keyframe)):
        if 8 % pipeline.vae_scale_factor:
            raise refused(
                folder.model_id, f"its vae scales by {pipeline.vae_scale_factor}; sizes here are multiples of 8"
            )
    return VideoModel(
        svd=svd,
        keyframe=keyframe,
        svd_folder=svd_folder,
        keyframe_folder=keyframe_folder,
        device=device,
        dtype=dtype,
        clip_frame_count=clip_frame_count,
        defaults=ClipDefaults.of(svd_folder, clip_frame_count),
        keyframe_defaults=KeyframeDefaults.of(keyframe_folder, keyframe),
        colours=LatentColours(svd),
        pulse=Pulse(svd, keyframe),
        weights=weight_figures(svd, keyframe),
    )


def warm_up(model: VideoModel) -> None:
    """Renders two small frames, so that the first request does not pay for choosing and loading kernels."""
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
        decode_chunk_frame_count=2,
        seed=0,
        preview=False,
    )
    generator = torch.Generator("cpu").manual_seed(clip.seed)
    picture = draw_keyframe(model.keyframe, model.keyframe_defaults, "", clip.width_px, clip.height_px, clip.seed)
    conditioning = encode(model.svd, picture, clip, clip.frame_count, generator)
    denoising = Denoising(model.svd, conditioning, clip, generator)
    denoising.step()
    for _ in decode(model.svd, denoising.latents, clip.decode_chunk_frame_count):
        pass
