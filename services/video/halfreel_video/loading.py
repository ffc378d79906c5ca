"""Loads the video model and the keyframe model into memory, from checked folders, at one explicit precision.

Each part is loaded by its own class, named here; the pipeline's loader, which can run a folder's Python, is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5Tokenizer,
    UMT5EncoderModel,
)

from halfreel_video.folder import ModelFolder
from halfreel_video.lean_unet import make_lean

# The PIL image processor and not the torchvision one: the same pictures on every machine, and no torchvision.
_CLASSES: dict[str, Any] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderKLTemporalDecoder": AutoencoderKLTemporalDecoder,
    "AutoencoderKLWan": AutoencoderKLWan,
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "CLIPImageProcessorFast": CLIPImageProcessorPil,
    "CLIPImageProcessorPil": CLIPImageProcessorPil,
    "CLIPTextModel": CLIPTextModel,
    "CLIPTokenizer": CLIPTokenizer,
    "CLIPTokenizerFast": CLIPTokenizer,
    "CLIPVisionModelWithProjection": CLIPVisionModelWithProjection,
    "DDIMScheduler": DDIMScheduler,
    "DPMSolverMultistepScheduler": DPMSolverMultistepScheduler,
    "EulerAncestralDiscreteScheduler": EulerAncestralDiscreteScheduler,
    "EulerDiscreteScheduler": EulerDiscreteScheduler,
    "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler,
    "LCMScheduler": LCMScheduler,
    "PNDMScheduler": PNDMScheduler,
    "T5EncoderModel": T5EncoderModel,
    "T5Tokenizer": T5Tokenizer,
    "T5TokenizerFast": T5Tokenizer,
    "UMT5EncoderModel": UMT5EncoderModel,
    "UNet2DConditionModel": UNet2DConditionModel,
    "UNetSpatioTemporalConditionModel": UNetSpatioTemporalConditionModel,
    "UniPCMultistepScheduler": UniPCMultistepScheduler,
    "WanTransformer3DModel": WanTransformer3DModel,
}

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_for(precision: str, device_kind: str) -> torch.dtype:
    """Returns the arithmetic for a precision: "auto" is FP16 on a GPU and FP32 on a CPU, where FP16 is slow."""
    if precision == "auto":
        precision = "fp16" if device_kind == "cuda" else "fp32"
    return DTYPES[precision]


def load_svd(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> StableVideoDiffusionPipeline:
    """Loads the image-to-video pipeline; its UNet does no work whose result is known before a step."""
    pipeline = StableVideoDiffusionPipeline(**_load_parts(folder, dtype))
    make_lean(pipeline.unet)
    return _on_device(pipeline, device)


def load_keyframe(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> StableDiffusionPipeline:
    """Loads the text-to-image pipeline, without its safety checker, whose weights come as pickle in most folders."""
    parts = _load_parts(folder, dtype)
    pipeline = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    return _on_device(pipeline, device)


def load_wan(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> WanPipeline:
    """Loads the text-to-video pipeline; its VAE in FP32 always, as its makers run it: it is small, and loses most."""
    parts = _load_parts(folder, dtype)
    for part in ("vae", "transformer"):
        torch.nn.Module.to(parts[part], torch.float32 if part == "vae" else dtype)
    return _on_device(WanPipeline(**parts), device)


@dataclass(frozen=True)
class WeightFigures:
    """How much was loaded: parameters, and bytes of them on the device."""

    parameter_count: int
    weight_bytes: int


def weight_figures(*pipelines: Any) -> WeightFigures:
    """Counts the parameters of pipelines."""
    parameters = [
        parameter
        for pipeline in pipelines
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for parameter in part.parameters()
    ]
    return WeightFigures(
        parameter_count=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
    )


def _load_parts(folder: ModelFolder, dtype: torch.dtype) -> dict[str, Any]:
    """Loads every part of a folder by its own class."""
    parts: dict[str, Any] = {}
    for part, class_name in folder.classes.items():
        path = str(folder.path / part)
        if part not in folder.family.weights:
            parts[part] = _CLASSES[class_name].from_pretrained(path, local_files_only=True)
            continue
        module = _CLASSES[class_name].from_pretrained(
            path,
            dtype=dtype,
            variant=folder.variant(part, prefer_fp16=dtype == torch.float16),
            use_safetensors=True,
            local_files_only=True,
        )
        parts[part] = module.eval().requires_grad_(False)
    return parts


def _on_device(pipeline: Any, device: torch.device) -> Any:
    """Moves all of a pipeline, SVD's mix factors too, which stay behind when the parts were built on a device.

    On a CPU the weights lie where the file has them, at any address, and kernels for other addresses round otherwise:
    they are copied to where the allocator would have them, so that a part that leaves and comes back computes the same.
    """
    pipeline.to(device)
    if device.type == "cpu":
        for part in pipeline.components.values():
            for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
                parameter.data = parameter.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
