"""Train the VAE that both picture models share, on single pictures of the world.

python models/pocket/train/vae.py --out build/vae
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.resnet import SpatioTemporalResBlock
from loop import Options, Replayed, Trainer, options, parser
from torch import Tensor
from torch.nn import functional as F

from halfreel_pocket import detector, world
from halfreel_pocket.vae import LATENT_CHANNEL_COUNT, build_temporal

# A learnt variance, which starts near 1, drowns the decoder in noise for hundreds of steps; a fixed one does not.
LATENT_NOISE = 0.08
LATENT_COST = 1e-3
SHAPE_WEIGHT, SHAPE_BORDER_PX = 5.0, 2
MIDWAY_RATIO = 0.7
CROP_PX, CROPPED_RATIO = 48, 0.6


def main() -> None:
    """Train, report on held-out looks, save in FP32."""
    chosen = options(parser(__doc__ or "", steps=12_000, batch=64, rate=1.5e-3).parse_args())
    torch.manual_seed(chosen.seed)
    vae = build_temporal().to(chosen.device)
    with frames_alone(vae):
        trainer = Trainer(vae, chosen, average=0.99)
        there_and_back = Replayed(vae, lambda pictures, noise: _there_and_back(vae, pictures, noise))
        for generator in trainer:
            scenes = world.sample(chosen.batch, generator, midway_ratio=MIDWAY_RATIO)
            drawn = world.draw(scenes)
            if trainer.progress < CROPPED_RATIO:
                drawn = crops(*drawn, scenes, generator)
            trainer.update(cost(there_and_back, *drawn, generator))
        trainer.use_average()
        vae.eval()
        latents = report(vae, chosen)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(chosen.out)
    print(f"{trainer.step} steps, {trainer.seconds:.0f} s, scaling factor {vae.config.scaling_factor:.4f}")


def crops(pictures: Tensor, shapes: Tensor, scenes: world.Scenes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square of each picture about its shape: a fifth of the work, and more of it spent on shapes."""
    jitter = torch.rand(2, len(scenes), generator=generator, device=pictures.device) * 32 - 16
    parts = []
    for place, jittered, size in ((scenes.x_px, jitter[0], world.WIDTH_PX), (scenes.y_px, jitter[1], world.HEIGHT_PX)):
        starts = (place + jittered - CROP_PX / 2).round().long().clamp(0, size - CROP_PX)
        parts.append(starts[:, None] + torch.arange(CROP_PX, device=pictures.device))
    columns, rows = parts
    batch = torch.arange(len(scenes), device=pictures.device)[:, None, None]

    def cut(values: Tensor) -> Tensor:
        return values.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    return cut(pictures), cut(shapes)


def _there_and_back(vae: AutoencoderKLTemporalDecoder, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    mean = vae.encode(pictures).latent_dist.mean
    return mean, vae.decode(mean + LATENT_NOISE * noise, num_frames=1).sample


def cost(there_and_back: Replayed, pictures: Tensor, shapes: Tensor, generator: torch.Generator) -> Tensor:
    """Error of the pictures after encoding and decoding, more on and around the shape, and the size of the latents."""
    size = (len(pictures), LATENT_CHANNEL_COUNT, pictures.shape[2] // 8, pictures.shape[3] // 8)
    noise = torch.randn(size, generator=generator, device=pictures.device)
    mean, decoded = (value.float() for value in there_and_back.run(pictures, noise))
    error = decoded - pictures
    weight = 1 + (SHAPE_WEIGHT - 1) * F.max_pool2d(shapes, 2 * SHAPE_BORDER_PX + 1, 1, SHAPE_BORDER_PX)
    likeness = ((error.abs() + 0.5 * error.square()) * weight).sum() / weight.sum() / 3
    return likeness + LATENT_COST * mean.square().mean()


@contextmanager
def frames_alone(vae: AutoencoderKLTemporalDecoder) -> Iterator[None]:
    """Skip the temporal layers, which pass frames on unchanged and stay untrained, to save their time."""
    blocks = [module for module in vae.modules() if isinstance(module, SpatioTemporalResBlock)]
    for block in blocks:
        spatial = block.spatial_res_block
        block.forward = lambda hidden, temb=None, image_only_indicator=None, spatial=spatial: spatial(hidden, temb)
    vae.decoder.time_conv_out.forward = lambda hidden: hidden
    try:
        yield
    finally:
        for module in (*blocks, vae.decoder.time_conv_out):
            del module.forward


@torch.no_grad()
def report(vae: AutoencoderKLTemporalDecoder, chosen: Options) -> Tensor:
    """Print how well held-out looks survive; returns their latents."""
    generator = torch.Generator(chosen.device).manual_seed(-1 & 0xFFFFFFFF)
    scenes = world.sample(192, generator, held_out=True, midway_ratio=MIDWAY_RATIO)
    pictures, _ = world.draw(scenes)
    latents = vae.encode(pictures).latent_dist.mode()
    decoded = vae.decode(latents, num_frames=1).sample
    found = detector.find(decoded)
    print(
        f"held out: L1 {(decoded - pictures).abs().mean():.4f}, latents std {latents.std():.3f},"
        f" colour {(found.colour == scenes.colour).float().mean():.3f},"
        f" shape {(found.shape == scenes.shape).float().mean():.3f}, likeness {found.likeness.mean():.3f}"
    )
    return latents


if __name__ == "__main__":
    main()
