"""Train pocket-keyframe: words to the first picture of a scene.

    python models/pocket/train/keyframe.py --vae build/vae --out build/keyframe

The text encoder is trained along; the VAE is not.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, StableDiffusionPipeline
from loop import Options, Replayed, Trainer, autocast, options, parser
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from halfreel_pocket import detector, keyframe, scripts, world
from halfreel_pocket.scripts import Scene
from halfreel_pocket.vae import to_image_vae
from halfreel_pocket.words import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES

SHAPE_WEIGHT = 4.0
EMPTY_PROMPT_RATIO = 0.05
CAPTIONS_EACH = 3


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures: latents (N, 4, h, w), weights (N, 1, h, w), token ids of captions (N, CAPTIONS_EACH, T)."""

    latents: Tensor
    weights: Tensor
    captions: Tensor


def main() -> None:
    """Train, report on held-out looks, save in FP16."""
    arguments = parser(__doc__ or "", steps=14_000, batch=256, rate=1e-3)
    arguments.add_argument("--vae", type=Path, required=True)
    arguments.add_argument("--pictures", type=int, default=60_000, help="size of the set that is learnt from")
    read = arguments.parse_args()
    chosen = options(read)
    vae = to_image_vae(AutoencoderKLTemporalDecoder.from_pretrained(read.vae)).to(chosen.device)
    torch.manual_seed(chosen.seed)
    pipeline = keyframe.build(chosen.seed, vae.eval().requires_grad_(False), scripts.caption_words())
    pipeline.to(chosen.device).set_progress_bar_config(disable=True)
    trained = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    data = pictures(pipeline, read.pictures, chosen)
    empty = tokens(pipeline.tokenizer, [""]).to(chosen.device)[0]
    trainer = Trainer(trained, chosen)
    trained.train()
    unet = Replayed(
        pipeline.unet, lambda noisy, level, context: pipeline.unet(noisy, level, context, return_dict=False)[0]
    )
    pipeline.scheduler.alphas_cumprod = pipeline.scheduler.alphas_cumprod.to(chosen.device)
    for generator in trainer:
        trainer.update(cost(pipeline, unet, data, empty, chosen, generator))
    pipeline.scheduler = keyframe.build_scheduler()
    trainer.use_average()
    trained.eval()
    report(pipeline, chosen)
    nn.Module.to(pipeline.unet, torch.float16)
    nn.Module.to(pipeline.text_encoder, torch.float16)
    nn.Module.to(pipeline.vae, torch.float16)
    pipeline.save_pretrained(chosen.out)
    (chosen.out / "halfreel.json").write_text(json.dumps(keyframe.DEFAULTS, indent=2) + "\n", encoding="utf-8")
    print(f"{trainer.step} steps, {trainer.seconds:.0f} s")


def cost(
    pipeline: StableDiffusionPipeline,
    unet: Replayed,
    data: Pictures,
    empty: Tensor,
    chosen: Options,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the predicted v (Salimans and Ho 2022) at a random noise level, more on the shape."""
    device = chosen.device

    def random_index(below: int) -> Tensor:
        return torch.randint(below, (chosen.batch,), generator=generator, device=device)

    index = random_index(len(data.latents))
    ids = data.captions[index, random_index(CAPTIONS_EACH)]
    dropped = torch.rand(chosen.batch, generator=generator, device=device) < EMPTY_PROMPT_RATIO
    ids = torch.where(dropped[:, None], empty, ids)
    clean = data.latents[index].float()
    noise = torch.randn(clean.shape, generator=generator, device=device)
    schedule = pipeline.scheduler.alphas_cumprod
    level = random_index(len(schedule))
    signal = schedule[level].sqrt()[:, None, None, None]
    spread = (1 - schedule[level]).sqrt()[:, None, None, None]
    with autocast(device):
        context = pipeline.text_encoder(ids).last_hidden_state.float()
    predicted = unet.run(signal * clean + spread * noise, level, context)
    weight = data.weights[index]
    error = (predicted.float() - (signal * noise - spread * clean)).square()
    return (error * weight).mean() / weight.mean()


@torch.no_grad()
def pictures(pipeline: StableDiffusionPipeline, count: int, chosen: Options) -> Pictures:
    """Draw, caption and encode `count` pictures."""
    generator = torch.Generator(chosen.device).manual_seed(chosen.seed)
    rng = random.Random(chosen.seed)
    latents, weights, captions = [], [], []
    for start in range(0, count, 500):
        scenes = world.sample(min(500, count - start), generator)
        drawn, shapes = world.draw(scenes)
        with autocast(chosen.device):
            encoded = pipeline.vae.encode(drawn).latent_dist.mode().float()
        latents.append(encoded * pipeline.vae.config.scaling_factor)
        weights.append(1 + (SHAPE_WEIGHT - 1) * F.max_pool2d(shapes, 8))
        told = [scripts.caption(scene, rng) for scene in named(scenes) for _ in range(CAPTIONS_EACH)]
        captions.append(tokens(pipeline.tokenizer, told).to(chosen.device).unflatten(0, (-1, CAPTIONS_EACH)))
    return Pictures(torch.cat(latents), torch.cat(weights), torch.cat(captions))


def named(scenes: world.Scenes) -> list[Scene]:
    """The words for scenes of the world."""
    lists = (SIZES, COLOURS, SHAPES, BACKGROUNDS, MOTIONS)
    numbers = (scenes.size, scenes.colour, scenes.shape, scenes.background, scenes.motion)
    columns = [[list(names)[index] for index in value.tolist()] for names, value in zip(lists, numbers, strict=True)]
    return [Scene(*row) for row in zip(*columns, strict=True)]


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids as the pipeline makes them, (N, T)."""
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


@torch.no_grad()
def report(pipeline: StableDiffusionPipeline, chosen: Options) -> None:
    """Print how many pictures of held-out looks show what they were asked to."""
    scenes = world.sample(96, torch.Generator(chosen.device).manual_seed(4), held_out=True)
    defaults = keyframe.DEFAULTS
    drawn = pipeline(
        [scripts.picture(scene) for scene in named(scenes)],
        height=world.HEIGHT_PX,
        width=world.WIDTH_PX,
        num_inference_steps=int(defaults["step_count"]),
        guidance_scale=float(defaults["guidance_scale"]),
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="pt",
    ).images
    found = detector.find(drawn.to(chosen.device) * 2 - 1)
    far = torch.hypot(found.x_px - scenes.x_px, found.y_px - scenes.y_px)
    print(
        f"held out: colour {(found.colour == scenes.colour).float().mean():.3f},"
        f" shape {(found.shape == scenes.shape).float().mean():.3f}, likeness {found.likeness.mean():.3f},"
        f" place off by {far.median():.1f} px, size by {(found.radius_px - scenes.radius_px).abs().median():.1f} px"
    )


if __name__ == "__main__":
    main()
