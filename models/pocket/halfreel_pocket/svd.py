"""The architecture of pocket-svd: a StableVideoDiffusionPipeline of a few million parameters.

Does not know what the model is trained on.
"""

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTH_PX, HEIGHT_PX, FRAME_COUNT = 128, 96, 16
DEFAULTS: dict[str, int | float] = {
    "width_px": WIDTH_PX,
    "height_px": HEIGHT_PX,
    "frame_count": FRAME_COUNT,
    "step_count": 6,
    "fps": 8,
    "motion_bucket": 12,
    "guidance_scale": 1.5,
}

_CONTEXT = 64
_TIME_ID_CHANNELS = 32


def build_unet() -> UNetSpatioTemporalConditionModel:
    """A random UNet; cross attention at every level, since the frame index enters only there."""
    channels = (64, 64, 64)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=WIDTH_PX // 8,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * len(channels),
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        num_attention_heads=(2, 2, 2),
        cross_attention_dim=_CONTEXT,
        addition_time_embed_dim=_TIME_ID_CHANNELS,
        projection_class_embeddings_input_dim=3 * _TIME_ID_CHANNELS,  # fps, motion bucket, noise
        num_frames=FRAME_COUNT,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def build_image_encoder() -> CLIPVisionModelWithProjection:
    """A random CLIP vision encoder; the pipeline always hands it pictures of 224 x 224 px."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=32,
            projection_dim=_CONTEXT,
        )
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """SVD's scheduler (EDM, Karras et al. 2022), from a sigma of 80 as the latents are small."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        sigma_min=0.02,
        sigma_max=80.0,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )


def assemble(
    vae: AutoencoderKLTemporalDecoder,
    unet: UNetSpatioTemporalConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
) -> StableVideoDiffusionPipeline:
    """The pipeline of these three models."""
    return StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=image_encoder,
        unet=unet,
        scheduler=build_scheduler(),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
    )


def build(seed: int, vae: AutoencoderKLTemporalDecoder) -> StableVideoDiffusionPipeline:
    """A random pocket-svd around `vae`, FP32, on the CPU."""
    torch.manual_seed(seed)
    return assemble(vae, build_unet(), build_image_encoder())
