"""The architecture of pocket-keyframe: a StableDiffusionPipeline of a few million parameters.

Does not know what the model is trained on, but for the words of its tokenizer.
"""

import string
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from halfreel_pocket.svd import HEIGHT_PX, WIDTH_PX

DEFAULTS: dict[str, int | float] = {
    "width_px": WIDTH_PX,
    "height_px": HEIGHT_PX,
    "step_count": 8,
    "guidance_scale": 1.0,
}
PROMPT_TOKEN_COUNT = 32

_CONTEXT = 96


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer to which each of `words` is one token; any other word is spelt by letter."""
    vocabulary: dict[str, int] = {}
    merges: list[tuple[str, str]] = []
    for letter in string.ascii_lowercase + string.digits + string.punctuation:
        for token in (letter, letter + "</w>"):
            vocabulary.setdefault(token, len(vocabulary))
    for word in sorted(set(words)):
        # One chain of merges a word would tokenise another word by the first chain that fits, so a
        # chain starts at the end of the word, where "</w>" makes it the word's own.
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[-2], parts[-1]) not in merges:
                merges.append((parts[-2], parts[-1]))
            parts[-2:] = [parts[-2] + parts[-1]]
            vocabulary.setdefault(parts[-1], len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary.setdefault(special, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=PROMPT_TOKEN_COUNT)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random CLIP text encoder for the tokens of `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_CONTEXT,
            intermediate_size=2 * _CONTEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKEN_COUNT,
            projection_dim=_CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """A random UNet with cross attention at every level."""
    channels = (64, 64, 96)
    unet = UNet2DConditionModel(
        sample_size=(HEIGHT_PX // 8, WIDTH_PX // 8),
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=_CONTEXT,
        attention_head_dim=(2, 2, 3),
        norm_num_groups=32,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def build_scheduler() -> DDIMScheduler:
    """DDIM with zero terminal SNR (Lin et al. 2023): the first step sees nothing but noise, as in use."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The pipeline of these models, without a safety checker: its world has nothing to check."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build(seed: int, vae: AutoencoderKL, words: Iterable[str]) -> StableDiffusionPipeline:
    """A random pocket-keyframe around `vae`, FP32, on the CPU."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(words)
    return assemble(vae, build_text_encoder(tokenizer), tokenizer, build_unet())
