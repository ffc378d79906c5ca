"""Writes Stable Video Diffusion XT and sd-turbo with random FP16 weights: the real classes at the real sizes.

Memory and speed do not depend on the values. The configurations are those of the published models; `--size tiny` has
the same shape of everything at a fraction of the size, to try the scripts without a GPU.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


@dataclass(frozen=True)
class Size:
    """What differs between the real models and the tiny ones."""

    channels: tuple[int, ...]
    heads: tuple[int, ...]
    layers: int
    vae_channels: tuple[int, ...]
    embedding: int
    time_embedding: int
    vision: dict[str, int]
    text: dict[str, int]


REAL = Size(
    channels=(320, 640, 1280, 1280),
    heads=(5, 10, 20, 20),
    layers=2,
    vae_channels=(128, 256, 512, 512),
    embedding=1024,
    time_embedding=256,
    vision={
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    text={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "vocab_size": 49408,
    },
)
TINY = Size(
    channels=(32, 32, 32, 32),
    heads=(2, 2, 2, 2),
    layers=1,
    vae_channels=(32, 32, 32, 32),
    embedding=32,
    time_embedding=32,
    vision={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "patch_size": 56,
    },
    text={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 600,
    },
)
SIZES = {"real": REAL, "tiny": TINY}


def svd_xt(size: Size, device: torch.device) -> Any:
    """Builds the image-to-video pipeline: at the real size 1524.6 M + 632.1 M + 97.7 M parameters."""
    with device:
        unet = UNetSpatioTemporalConditionModel(
            sample_size=96,
            block_out_channels=size.channels,
            num_attention_heads=size.heads,
            layers_per_block=size.layers,
            cross_attention_dim=size.embedding,
            addition_time_embed_dim=size.time_embedding,
            projection_class_embeddings_input_dim=3 * size.time_embedding,
            num_frames=25,
        )
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            block_out_channels=size.vae_channels,
            layers_per_block=size.layers,
            sample_size=768,
            scaling_factor=0.18215,
            force_upcast=True,
        )
        image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**size.vision, image_size=224, projection_dim=size.embedding, hidden_act="gelu")
        )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        interpolation_type="linear",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )
    return StableVideoDiffusionPipeline(
        vae=_half(vae, device),
        image_encoder=_half(image_encoder, device),
        unet=_half(unet, device),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
    )


def sd_turbo(size: Size, device: torch.device) -> Any:
    """Builds the text-to-image pipeline, of the shape of Stable Diffusion 2.1."""
    with device:
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=size.channels,
            attention_head_dim=size.heads,
            layers_per_block=size.layers,
            cross_attention_dim=size.embedding,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=size.vae_channels,
            layers_per_block=size.layers,
            latent_channels=4,
            sample_size=768,
            scaling_factor=0.18215,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                **size.text,
                max_position_embeddings=77,
                hidden_act="gelu",
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return StableDiffusionPipeline(
        vae=_half(vae, device),
        text_encoder=_half(text_encoder, device),
        tokenizer=CLIPTokenizer(
            vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=77
        ),
        unet=_half(unet, device),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _half(module: Any, device: torch.device) -> Any:
    """Makes a module FP16, with matrices small enough that nothing overflows on its way through the layers."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(0.5)
    return module.to(device, torch.float16).eval()


def main() -> None:
    """Writes both folders, and ends with one line on what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="real")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device, counts = torch.device(arguments.device), {}
    for name, build in (("svd-xt", svd_xt), ("sd-turbo", sd_turbo)):
        pipeline = build(SIZES[arguments.size], device)
        pipeline.save_pretrained(arguments.folder / name, safe_serialization=True, variant="fp16")
        for part, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module):
                counts[f"{name}/{part}"] = sum(parameter.numel() for parameter in module.parameters())
        del pipeline
    print(json.dumps({"folder": str(arguments.folder), "parameter_counts": counts}))


if __name__ == "__main__":
    main()
