"""The text-to-video model that a server owns instead of an image-to-video one, loaded and warm, with its defaults.

It needs no keyframe model, and none is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from halfreel_runtime.device import Device
from halfreel_video.clip import ClipRequest
from halfreel_video.folder import WAN, ModelFolder, open_folder, refused
from halfreel_video.levers import Levers
from halfreel_video.loading import WeightFigures, dtype_for, load_wan, weight_figures
from halfreel_video.model import ClipDefaults
from halfreel_video.preview import LatentColours
from halfreel_video.pulse import Pulse
from halfreel_video.settings import VideoSettings
from halfreel_video.wan import WanDenoising, decode, picture_latents, read_words

_WARM_UP_SIDE_PX = 64


@dataclass(frozen=True)
class TextModel:
    """The pipeline and what is known of it; used by the engine's thread alone, but for its figures."""

    pipeline: Any
    folder: ModelFolder
    device: Device
    dtype: torch.dtype
    defaults: ClipDefaults
    colours: LatentColours
    pulse: Pulse
    weights: WeightFigures

    @property
    def dtype_name(self) -> str:
        """The arithmetic, such as "bfloat16"; the VAE's is FP32."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def levers(self) -> Levers:
        """The one way in which this model's clips are computed."""
        return Levers(decode_chunk_frame_count=int(self.pipeline.vae_scale_factor_temporal))

    @property
    def side_step_px(self) -> int:
        """What width and height must be multiples of: a patch of latent cells."""
        return int(self.pipeline.vae_scale_factor_spatial * self.pipeline.transformer.config.patch_size[1])

    @property
    def parts(self) -> list[torch.nn.Module]:
        """Its modules."""
        return [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]


def load_text_model(settings: VideoSettings, device: Device) -> TextModel:
    """Loads the model.

    Args:
        settings: what the server was told.
        device: what the model runs on.

    Raises:
        NotFound: MODEL_NOT_FOUND.
        FailedPrecondition: MODEL_REFUSED.
    """
    folder = open_folder(settings.model, WAN)
    precision = settings.precision
    if precision == "auto" and device.kind == "cuda" and not folder.family.fp16:
        precision = "bf16"
    dtype = dtype_for(precision, device.kind)
    pipeline = load_wan(folder, dtype, torch.device(device.torch_name))
    config = pipeline.transformer.config
    if config.patch_size[1] != config.patch_size[2]:
        raise refused(folder.model_id, f"its patches are {config.patch_size[1]} by {config.patch_size[2]} cells")
    if pipeline.vae.config.patch_size is not None:
        raise refused(folder.model_id, "its vae works on patches, which is not supported")
    # As Wan 2.1 was trained, at its smaller size.
    given: dict[str, float] = {"width_px": 832, "height_px": 480, "frame_count": 81, "step_count": 50}
    given |= {"fps": 16, "guidance_scale": 5.0} | dict(folder.metadata)
    return TextModel(
        pipeline=pipeline,
        folder=folder,
        device=device,
        dtype=dtype,
        defaults=ClipDefaults(
            width_px=int(given["width_px"]),
            height_px=int(given["height_px"]),
            frame_count=int(given["frame_count"]),
            step_count=int(given["step_count"]),
            fps=int(given["fps"]),
            motion_bucket=127,  # the contract's default; this kind of model has none
            guidance_scale=float(given["guidance_scale"]),
            decode_chunk_frame_count=int(pipeline.vae_scale_factor_temporal),
        ),
        colours=LatentColours(pipeline, picture_latents),
        pulse=Pulse(pipeline),
        weights=weight_figures(pipeline),
    )


def warm_up_text(model: TextModel) -> None:
    """Renders one small frame, so that the first request does not pay for choosing and loading kernels."""
    defaults = model.defaults
    clip = ClipRequest(
        request_id="warm-up",
        prompt="warm-up",
        image=None,
        width_px=_WARM_UP_SIDE_PX,
        height_px=_WARM_UP_SIDE_PX,
        frame_count=2,
        step_count=1,
        fps=defaults.fps,
        motion_bucket=defaults.motion_bucket,
        guidance_scale=defaults.guidance_scale,
        seed=0,
        preview=False,
        levers=model.levers,
        segment_frame_count=2,
    )
    denoising = WanDenoising(model.pipeline, read_words(model.pipeline, clip), clip, torch.Generator().manual_seed(0))
    denoising.step()
    for _ in decode(model.pipeline, denoising.latents):
        pass
