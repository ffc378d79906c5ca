"""The VAE that both picture models share, once as SVD's temporal decoder and once as an image VAE.

The temporal layers of SVD's decoder are exact identities, so that it can be trained on single frames
and its decoder is the image decoder, weight by weight.
"""

from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import nn

# GroupNorm has 32 groups: with 32 channels it would be instance norm, which washes colours out.
CHANNELS = (64, 64, 64, 64)
LATENT_CHANNEL_COUNT = 4
SAMPLE_PX = 128


def build_temporal() -> AutoencoderKLTemporalDecoder:
    """A random VAE of SVD's class, 8 px a latent cell, whose temporal layers pass frames on unchanged."""
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNEL_COUNT,
        sample_size=SAMPLE_PX,
        scaling_factor=1.0,
        force_upcast=False,
    )
    for module in vae.modules():
        if isinstance(module, SpatioTemporalResBlock):
            _zero(module.temporal_res_block.conv2)
    taps = vae.decoder.time_conv_out
    _zero(taps)
    for channel in range(3):
        taps.weight.data[channel, channel, 1] = 1
    return vae


def to_image_vae(vae: AutoencoderKLTemporalDecoder) -> AutoencoderKL:
    """The same function on single pictures, of StableDiffusion's class.

    Exact: what its middle block has and SVD's lacks, a second resnet and attention, adds nothing.
    """
    image_vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNEL_COUNT,
        norm_num_groups=32,
        sample_size=SAMPLE_PX,
        scaling_factor=vae.config.scaling_factor,
        force_upcast=False,
        use_post_quant_conv=False,
    )
    image_vae.encoder.load_state_dict(vae.encoder.state_dict())
    image_vae.quant_conv.load_state_dict(vae.quant_conv.state_dict())
    to, source = image_vae.decoder, vae.decoder
    for name in ("conv_in", "conv_norm_out", "conv_out"):
        getattr(to, name).load_state_dict(getattr(source, name).state_dict())
    to.mid_block.resnets[0].load_state_dict(source.mid_block.resnets[0].spatial_res_block.state_dict())
    _zero(to.mid_block.resnets[1].conv2)
    _zero(to.mid_block.attentions[0].to_out[0])
    for to_block, block in zip(to.up_blocks, source.up_blocks, strict=True):
        for to_resnet, resnet in zip(to_block.resnets, block.resnets, strict=True):
            to_resnet.load_state_dict(resnet.spatial_res_block.state_dict())
        if block.upsamplers:
            to_block.upsamplers.load_state_dict(block.upsamplers.state_dict())
    return image_vae


def _zero(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
