"""Train pocket-svd: the first picture of a scene to its film.

    python models/pocket/train/svd.py --vae build/vae --out build/svd
    python models/pocket/train/svd.py --vae build/vae --out build/svd --start build/svd --keyframe build/keyframe

The image encoder is trained along; the VAE is not. With --keyframe, half of the films begin with pictures that
pocket-keyframe drew, whose small faults the model so learns to live with.
"""

import functools
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder as TemporalVae
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline
from keyframe import named
from loop import Options, Replayed, Trainer, autocast, options, parser
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from vae import frames_alone

from halfreel_pocket import detector, keyframe, scripts, svd, world
from halfreel_pocket.words import MOTIONS, SHAPES, is_held_out

SHAPE_WEIGHT = 4.0
DROPPED_RATIO = 0.05  # of films without their picture: what classifier-free guidance needs
MIDWAY_RATIO = 0.35
WHOLE_CLIP_RATIO = 0.88
MOST_TURNS = 8  # of drawing, for each that there would be if every picture were good
# ln of the noise level; the middle is where the place of the shape is decided.
NOISE_MEAN, NOISE_SPREAD, NOISE_LIMITS = 0.6, 1.6, (0.005, 200.0)
STAR = list(SHAPES).index("star")
PICTURE_NOISE = 0.02  # what the pipeline adds to the picture before encoding it, unless told otherwise


@dataclass(frozen=True)
class Films:
    """Encoded films: latents (N, F, 4, h, w), weights (N, F, 1, h, w), first pictures (N, 3, H, W), buckets (N,)."""

    latents: Tensor
    weights: Tensor
    pictures: Tensor
    buckets: Tensor


def main() -> None:
    """Train, report on held-out looks, save in FP16."""
    arguments = parser(__doc__ or "", steps=9_000, batch=32, rate=1e-3)
    arguments.add_argument("--vae", type=Path, required=True)
    arguments.add_argument("--films", type=int, default=12_000, help="size of the set that is learnt from")
    arguments.add_argument("--reported", type=int, default=36, help="films made to report on")
    arguments.add_argument("--buckets", type=int, default=world.BUCKETS, help="motion buckets are under this")
    arguments.add_argument("--stars", type=float, default=0.0, help="share of films made stars: hardest to keep")
    arguments.add_argument("--start", type=Path, help="a pocket-svd to go on from")
    arguments.add_argument("--keyframe", type=Path, help="a pocket-keyframe that draws half of the first pictures")
    read = arguments.parse_args()
    chosen = options(read)
    vae = TemporalVae.from_pretrained(read.vae)
    if read.start:
        trained = StableVideoDiffusionPipeline.from_pretrained(read.start, dtype=torch.float32)
        pipeline = svd.assemble(vae, trained.unet.float(), trained.image_encoder.float())
    else:
        pipeline = svd.build(chosen.seed, vae)
    vae.eval().requires_grad_(False)
    pipeline.to(chosen.device).set_progress_bar_config(disable=True)
    with frames_alone(vae):
        data = films(vae, read.films, read.buckets, read.stars, read.keyframe, chosen)
    modules = nn.ModuleDict({"unet": pipeline.unet, "image_encoder": pipeline.image_encoder})
    trainer = Trainer(modules, chosen)
    modules.train()
    unet = Replayed(
        pipeline.unet, lambda noisy, level, seen, ids: pipeline.unet(noisy, level, seen, ids, return_dict=False)[0]
    )
    for generator in trainer:
        trainer.update(cost(pipeline, unet, data, chosen, generator))
    trainer.use_average()
    modules.eval()
    report(pipeline, chosen, read.keyframe, read.reported)
    for module in (pipeline.unet, pipeline.image_encoder, pipeline.vae):
        nn.Module.to(module, torch.float16)
    pipeline.save_pretrained(chosen.out)
    (chosen.out / "halfreel.json").write_text(json.dumps(svd.DEFAULTS, indent=2) + "\n", encoding="utf-8")
    print(f"{trainer.step} steps, {trainer.seconds:.0f} s")


def cost(
    pipeline: StableVideoDiffusionPipeline, unet: Replayed, data: Films, chosen: Options, generator: torch.Generator
) -> Tensor:
    """Squared error of the predicted v, which weighs noise levels as EDM does (Karras et al. 2022).

    The network is given and answers what `EulerDiscreteScheduler` with v_prediction gives and expects: input
    x / sqrt(s^2 + 1), time ln(s) / 4, and v such that x / (s^2 + 1) - v s / sqrt(s^2 + 1) is the clean film.
    """
    device, count = chosen.device, chosen.batch

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=device)

    # Most films are whole clips; the others teach shorter ones, as the end of a longer scene is.
    rng = random.Random(generator.initial_seed())
    whole = rng.random() < WHOLE_CLIP_RATIO
    frame_count = world.CLIP_FRAME_COUNT if whole else rng.randint(2, world.CLIP_FRAME_COUNT - 1)
    index = torch.randint(len(data.latents), (count,), generator=generator, device=device)
    clean = data.latents[index, :frame_count].float()
    weight = data.weights[index, :frame_count].float()
    picture = data.pictures[index].float() / 127.5 - 1
    kept = (uniform(count) > DROPPED_RATIO).float()
    faint = torch.where(uniform(count) < 0.7, PICTURE_NOISE, 0.1 * uniform(count))
    with torch.no_grad(), autocast(device):
        noised = picture + faint[:, None, None, None] * normal(picture)
        condition = pipeline.vae.encode(noised).latent_dist.mode().float() * kept[:, None, None, None]
    level = (normal(faint) * NOISE_SPREAD + NOISE_MEAN).exp().clamp(*NOISE_LIMITS)
    spread = level[:, None, None, None, None]
    noisy = clean + spread * normal(clean)
    inputs = torch.cat([noisy * (spread**2 + 1).rsqrt(), condition[:, None].expand(-1, frame_count, -1, -1, -1)], 2)
    fps = torch.randint(1, 30, (count,), generator=generator, device=device).float()  # it changes nothing, and may not
    ids = torch.stack([fps, data.buckets[index].float(), faint], 1)
    with autocast(device):
        seen = pipeline.image_encoder(encoder_input(picture)).image_embeds.float()[:, None] * kept[:, None, None]
    # A graph for the whole clips alone: one for each length would take longer to record than it saves.
    predicted = (unet.run if whole else unet)(inputs, 0.25 * level.log(), seen, ids)
    wanted = (noisy / (spread**2 + 1) - clean) * (spread**2 + 1).sqrt() / spread
    return ((predicted.float() - wanted).square() * weight).mean() / weight.mean()


def encoder_input(picture: Tensor) -> Tensor:
    """What the pipeline makes of a picture in [-1, 1] for its image encoder.

    The pipeline blurs it first, but by nothing where the picture is smaller than what the encoder is handed.
    """
    mean, deviation = _encoder_scale(picture.device)
    resized = F.interpolate(picture, (224, 224), mode="bicubic", align_corners=True)
    return ((resized + 1) / 2 - mean) / deviation


@functools.cache
def _encoder_scale(device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=device)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=device)
    return mean[:, None, None], deviation[:, None, None]


@torch.no_grad()
def films(vae: TemporalVae, count: int, buckets: int, stars: float, drawer: Path | None, chosen: Options) -> Films:
    """Draw and encode `count` films."""
    generator = torch.Generator(chosen.device).manual_seed(chosen.seed)
    parts: list[tuple[Tensor, ...]] = []
    pipeline = _drawer(drawer, chosen) if drawer else None
    done = turn = 0
    while done < count:
        turn += 1
        if turn * 128 > MOST_TURNS * count + 1024:
            raise SystemExit("the keyframe model draws too little that shows what it should")
        drawn = pipeline is not None and turn % 2 == 0
        scenes = world.sample(min(128, count), generator, midway_ratio=0.0 if drawn else MIDWAY_RATIO)
        scenes = replace(scenes, bucket=scenes.bucket * buckets // world.BUCKETS)
        may = ~is_held_out(scenes.colour, STAR, scenes.background)
        may &= torch.rand(len(scenes), generator=generator, device=chosen.device) < stars
        scenes = replace(scenes, shape=torch.where(may, STAR, scenes.shape))
        firsts = None
        if drawn:
            scenes, firsts = drawn_pictures(pipeline, scenes, generator)
            if not len(scenes):
                continue
        frames, shapes = world.film(scenes)
        if firsts is None:
            firsts = ((frames[:, 0] + 1) * 127.5).round().byte()
        with autocast(chosen.device):
            split = frames.flatten(0, 1).split(512)
            latents = [vae.encode(part).latent_dist.mode() * vae.config.scaling_factor for part in split]
        cells = F.max_pool2d(shapes.flatten(0, 1), 8).unflatten(0, shapes.shape[:2])
        weights = 1 + (SHAPE_WEIGHT - 1) * torch.maximum(cells, cells[:, :1])  # where it is, and where it was
        encoded = torch.cat(latents).unflatten(0, shapes.shape[:2]).half()
        parts.append((encoded, weights.half(), firsts, scenes.bucket))
        done += len(scenes)
    return Films(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _drawer(path: Path, chosen: Options) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32, safety_checker=None)
    pipeline.to(chosen.device).set_progress_bar_config(disable=True)
    return pipeline


def drawn_pictures(
    pipeline: StableDiffusionPipeline, scenes: world.Scenes, generator: torch.Generator
) -> tuple[world.Scenes, Tensor]:
    """First pictures by pocket-keyframe, bytes, and the scenes as they turned out; bad ones are left out."""
    drawn = pipeline(
        [scripts.picture(scene) for scene in named(scenes)],
        height=world.HEIGHT_PX,
        width=world.WIDTH_PX,
        num_inference_steps=int(keyframe.DEFAULTS["step_count"]),
        guidance_scale=float(keyframe.DEFAULTS["guidance_scale"]),
        generator=generator,
        output_type="pt",
    ).images
    found = detector.find(drawn * 2 - 1)
    good = ((found.colour == scenes.colour) & (found.shape == scenes.shape)).nonzero()[:, 0]
    places = {"x_px": found.x_px, "y_px": found.y_px, "radius_px": found.radius_px}
    seen = world.Scenes(**{**vars(scenes), **places})
    return seen[good], (drawn[good] * 255).round().byte()


@torch.no_grad()
def report(pipeline: StableVideoDiffusionPipeline, chosen: Options, drawer: Path | None, count: int) -> None:
    """Print how many films of held-out looks keep their shape and move as they should, and how fast frames drift."""
    scenes = world.sample(count, torch.Generator(chosen.device).manual_seed(5), held_out=True)
    firsts = ((world.draw(scenes)[0] + 1) * 127.5).round().byte()
    _report(pipeline, chosen, "true pictures", scenes, firsts)
    if drawer:
        drawn = drawn_pictures(_drawer(drawer, chosen), scenes, torch.Generator(chosen.device).manual_seed(6))
        if len(drawn[0]):
            _report(pipeline, chosen, "drawn pictures", *drawn)
        else:
            print("no drawn picture shows what it should", flush=True)


def _report(
    pipeline: StableVideoDiffusionPipeline, chosen: Options, kind: str, scenes: world.Scenes, firsts: Tensor
) -> None:
    shown = []
    for number in range(len(scenes)):
        frames = pipeline(
            Image.fromarray(firsts[number].permute(1, 2, 0).cpu().numpy()),
            height=world.HEIGHT_PX,
            width=world.WIDTH_PX,
            num_frames=world.CLIP_FRAME_COUNT,
            num_inference_steps=int(svd.DEFAULTS["step_count"]),
            min_guidance_scale=1.0,
            max_guidance_scale=1.0,
            motion_bucket_id=int(scenes.bucket[number]),
            fps=int(svd.DEFAULTS["fps"]),
            generator=torch.Generator("cpu").manual_seed(number),
            output_type="pt",
        ).frames[0]
        shown.append(frames.to(chosen.device) * 2 - 1)
    found = detector.find(torch.cat(shown))
    each = world.CLIP_FRAME_COUNT
    colour = (found.colour.unflatten(0, (-1, each)) == scenes.colour[:, None]).float()
    shape = (found.shape.unflatten(0, (-1, each)) == scenes.shape[:, None]).float()
    moved = detector.motion_of(found, each) == scenes.motion
    x, y, _ = world.track(scenes)
    far = torch.hypot(found.x_px - x.flatten(), found.y_px - y.flatten()).unflatten(0, (-1, each))
    ways = {name: round(float(moved[scenes.motion == number].float().mean()), 2) for number, name in enumerate(MOTIONS)}
    print(
        f"held out, {kind}: colour {colour.mean():.3f} last {colour[:, -1].mean():.3f}, shape {shape.mean():.3f}"
        f" last {shape[:, -1].mean():.3f}, motion {moved.float().mean():.3f} {ways},"
        f" place off by {far.mean():.1f} px, last {far[:, -1].mean():.1f} px",
        flush=True,
    )


if __name__ == "__main__":
    main()
