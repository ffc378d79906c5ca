"""The pocket world: one coloured shape that moves over a simple background, drawn from numbers that are the truth.

Seeded, vectorised, on any device. Does not know how models learn from it, and of language only the order of the
names in `words`.

Where a shape will go can be seen in its first frame, since an image-to-video model is told no words: a shape that moves
leaves three streaks behind it, one that comes toward us wears a halo, one that stands still casts a shadow. It also
starts on the side that it comes from. A shape stops at the edge of the picture, so that a clip may be continued from
its last frame.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halfreel_pocket.words import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, is_held_out

WIDTH_PX, HEIGHT_PX, CLIP_FRAME_COUNT = 128, 96, 16
RADII_PX = (13.0, 16.0, 19.5)  # by size; a VAE with cells of 8 px loses the outline of anything much smaller
LARGEST_RADIUS_PX = 32.0
BUCKETS = 256

# sRGB. Shapes are saturated and backgrounds are not, so that a shape can be told from what is behind it.
_PALETTE = (
    (215, 30, 35), (25, 150, 50), (35, 60, 215), (240, 215, 20),
    (245, 125, 15), (125, 30, 165), (250, 90, 175), (20, 195, 215),
)  # fmt: skip
_LEFT, _RIGHT, _UP, _DOWN, _TOWARD, _STILL = range(len(MOTIONS))
_NIGHT = list(BACKGROUNDS).index("night")
_CUE_DARK, _CUE_LIGHT = (70, 70, 78), (190, 190, 198)
_EDGE_PX = 3.0
_STREAK_GAP_PX, _STREAK_LENGTH_PX, _STREAK_HALF_PX = 4.0, 10.0, 1.3


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes; every field is a tensor of shape (N,).

    colour, shape, size, background, motion: indices into the lists of `words`. bucket: 0..255, how far it goes.
    x_px, y_px, radius_px: of the shape in the first frame.
    """

    colour: Tensor
    shape: Tensor
    size: Tensor
    background: Tensor
    motion: Tensor
    bucket: Tensor
    x_px: Tensor
    y_px: Tensor
    radius_px: Tensor

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.colour)

    def __getitem__(self, index: Tensor | slice) -> "Scenes":
        """The scenes at `index`."""
        return Scenes(**{name: value[index] for name, value in vars(self).items()})


def sample(count: int, generator: torch.Generator, *, held_out: bool = False, midway_ratio: float = 0.0) -> Scenes:
    """Random scenes, on the generator's device.

    Args:
        count: how many.
        generator: its state decides everything.
        held_out: combinations of colour, shape and background that training never shows, instead of the others.
        midway_ratio: how many begin anywhere on their way, as a clip does that continues another.
    """
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator, device=device) * (high - low) + low

    def choice(options: int) -> Tensor:
        return torch.randint(options, (count,), generator=generator, device=device)

    looks = _looks(device, held_out)
    colour, shape, background = looks[choice(len(looks))].unbind(1)
    size, motion = choice(len(SIZES)), choice(len(MOTIONS))
    bucket = choice(BUCKETS)
    radius = _constant(RADII_PX, device)[size] + uniform(-0.5, 0.5)
    room = radius + _STREAK_GAP_PX + _STREAK_LENGTH_PX + 2 + uniform(0, 5)
    x, y = WIDTH_PX / 2 + uniform(-16, 16), HEIGHT_PX / 2 + uniform(-8, 8)
    x = torch.where(motion == _RIGHT, room, torch.where(motion == _LEFT, WIDTH_PX - room, x))
    y = torch.where(motion == _DOWN, room, torch.where(motion == _UP, HEIGHT_PX - room, y))
    steps = uniform(0, 1.6) * (uniform(0, 1) < midway_ratio) * (CLIP_FRAME_COUNT - 1)
    scenes = Scenes(colour, shape, size, background, motion, bucket, x, y, radius)
    x, y, radius = (way[:, 0] for way in _way(scenes, steps[:, None]))
    return Scenes(colour, shape, size, background, motion, bucket, x, y, radius)


@functools.cache
def _looks(device: torch.device, held_out: bool) -> Tensor:
    """Numbers of colour, shape and background, (N, 3), of every look that is held out, or of every other."""
    looks = (
        (colour, shape, background)
        for colour in range(len(COLOURS))
        for shape in range(len(SHAPES))
        for background in range(len(BACKGROUNDS))
        if is_held_out(colour, shape, background) is held_out
    )
    return torch.tensor(list(looks), device=device)


# Kept: a GPU would wait for each copy of such a small thing.
@functools.cache
def _constant(values: tuple[float, ...] | tuple[tuple[int, ...], ...], device: torch.device | str) -> Tensor:
    return torch.tensor(values, device=device)


def track(scenes: Scenes, frame_count: int = CLIP_FRAME_COUNT) -> tuple[Tensor, Tensor, Tensor]:
    """Where the shapes are: x, y and radius in pixels, each (N, frame_count)."""
    return _way(scenes, torch.arange(frame_count, device=scenes.x_px.device)[None])


def _way(scenes: Scenes, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    clip = frame / (CLIP_FRAME_COUNT - 1)
    share = (scenes.bucket.float() / (BUCKETS - 1))[:, None]
    motion, radius = scenes.motion[:, None], scenes.radius_px[:, None]
    grown = radius * (1 + (motion == _TOWARD) * (0.2 + share) * clip)
    grown = torch.where(motion == _TOWARD, grown.clamp(max=LARGEST_RADIUS_PX), radius + 0 * clip)
    across = ((motion == _RIGHT).float() - (motion == _LEFT).float()) * (10 + 70 * share) * clip
    along = ((motion == _DOWN).float() - (motion == _UP).float()) * (8 + 44 * share) * clip
    edge = radius + _EDGE_PX
    x, y = scenes.x_px[:, None], scenes.y_px[:, None]
    moved_x = torch.maximum(torch.minimum(x + across, WIDTH_PX - edge), edge)
    moved_y = torch.maximum(torch.minimum(y + along, HEIGHT_PX - edge), edge)
    return torch.where(across == 0, x, moved_x), torch.where(along == 0, y, moved_y), grown


def film(scenes: Scenes, frame_count: int = CLIP_FRAME_COUNT) -> tuple[Tensor, Tensor]:
    """The films of `scenes`, (N, F, 3, H, W) in [-1, 1], and the shape with its cue, (N, F, 1, H, W) in [0, 1]."""
    x, y, radius = track(scenes, frame_count)

    def each(value: Tensor) -> Tensor:
        return value.repeat_interleave(frame_count)

    frames = Scenes(
        **{name: each(value) for name, value in vars(scenes).items() if not name.endswith("_px")},
        x_px=x.flatten(),
        y_px=y.flatten(),
        radius_px=radius.flatten(),
    )
    pictures, masks = draw(frames)
    return pictures.unflatten(0, (len(scenes), frame_count)), masks.unflatten(0, (len(scenes), frame_count))


def draw(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """The first frames of `scenes`: (N, 3, H, W) in [-1, 1], and the shape with its cue (N, 1, H, W) in [0, 1]."""
    device = scenes.x_px.device
    column, row = _grid(device)
    x = column - scenes.x_px[:, None, None]
    y = row - scenes.y_px[:, None, None]
    radius = scenes.radius_px[:, None, None]
    shape = (0.5 - shape_distance(scenes.shape, x, y, radius)).clamp(0, 1)[:, None]
    cue = 0.85 * (0.5 - _cue_distance(scenes.motion, x, y, radius)).clamp(0, 1)[:, None]
    cues = _constant((_CUE_DARK, _CUE_LIGHT), device) / 127.5 - 1
    cue_colour = cues[(scenes.background == _NIGHT).long()][:, :, None, None]
    picture = backgrounds(device)[scenes.background]
    picture = picture * (1 - cue) + cue_colour * cue
    picture = picture * (1 - shape) + palette(device)[scenes.colour][:, :, None, None] * shape
    return picture, torch.maximum(shape, cue)


def palette(device: torch.device | str = "cpu") -> Tensor:
    """The colours of shapes, (8, 3) in [-1, 1]."""
    return _constant(_PALETTE, device) / 127.5 - 1


def shape_distance(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance in pixels to the outline of shape number `shape` (N,), negative inside, to within a pixel.

    x and y (N, H, W) are relative to the shape's place, y points down; radius is (N, 1, 1).
    """
    distances = torch.stack([outline(x, y, radius) for outline in OUTLINES], 1)
    return distances.gather(1, shape[:, None, None, None].expand(-1, 1, *x.shape[1:]))[:, 0]


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.84 * radius


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs() * 0.866 - y * 0.5, y) - 0.55 * radius


def _star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    corner = 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(x, -y) + corner / 2, corner) - corner / 2).abs()
    reach, tip = torch.hypot(x, y), 1.12 * radius
    dent = 0.46 * tip
    edge_x, edge_y = dent * math.cos(corner / 2) - tip, dent * math.sin(corner / 2)
    across = (reach * torch.cos(angle) - tip) * edge_y - reach * torch.sin(angle) * edge_x
    return across / torch.hypot(edge_x, edge_y)


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    wide, high, bar = x.abs(), y.abs(), 0.36 * radius
    return torch.minimum(torch.maximum(wide - radius, high - bar), torch.maximum(wide - bar, high - radius))


def _ring(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72 * radius).abs() - 0.28 * radius


OUTLINES = (_circle, _square, _triangle, _star, _cross, _ring)
"""The distance to the outline of each shape, in the order of `words.SHAPES`; arguments as of `shape_distance`."""


def _cue_distance(motion: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance to what shows in the first frame where the shape will go; as `shape_distance`."""
    motion = motion[:, None, None]
    # Turned so that the shape moves to positive `ahead`.
    ahead = torch.where(motion == _RIGHT, x, torch.where(motion == _LEFT, -x, torch.where(motion == _UP, -y, y)))
    beside = torch.where((motion == _UP) | (motion == _DOWN), x, y).abs()
    middle = -(radius + _STREAK_GAP_PX + _STREAK_LENGTH_PX / 2)
    line = torch.minimum(beside, (beside - 0.6 * radius).abs())
    streaks = torch.maximum((ahead - middle).abs() - _STREAK_LENGTH_PX / 2, line - _STREAK_HALF_PX)
    halo = (torch.hypot(x, y) - 1.3 * radius).abs() - 1.3
    shadow = (torch.sqrt((x / (0.95 * radius)) ** 2 + ((y - radius - 5) / 3.5) ** 2 + 1e-6) - 1) * 3.5
    return torch.where(motion == _TOWARD, halo, torch.where(motion == _STILL, shadow, streaks))


@functools.cache
def backgrounds(device: torch.device | str = "cpu") -> Tensor:
    """The backgrounds, (6, 3, H, W) in [-1, 1], always the same."""
    x, y = _grid(device)
    down = y / HEIGHT_PX

    def mix(first: tuple[int, int, int], second: tuple[int, int, int], share: Tensor) -> Tensor:
        low, high = (torch.tensor(colour, device=device)[:, None, None] for colour in (first, second))
        return low + (high - low) * share.clamp(0, 1)

    def over(picture: Tensor, colour: tuple[int, int, int], share: Tensor) -> Tensor:
        share = share.clamp(0, 1)
        return picture * (1 - share) + torch.tensor(colour, device=device)[:, None, None] * share

    def soft(distance: Tensor, width_px: float) -> Tensor:
        return (0.5 - distance / width_px).clamp(0, 1)

    sky = mix((150, 182, 220), (205, 222, 238), down)
    for cloud_x, cloud_y, cloud_px in ((24, 16, 12), (38, 19, 9), (98, 24, 13), (112, 21, 8)):
        sky = over(sky, (242, 245, 248), soft(torch.hypot((x - cloud_x) / 1.4, y - cloud_y) - cloud_px, 6) * 0.8)
    waves = torch.sin(y * 0.42 + 1.2 * torch.sin(x * 0.08)) * 0.5 + 0.5
    sea = mix((100, 138, 168), (126, 158, 182), waves)
    sea = over(sea, (214, 224, 232), soft(y - 22, 2))
    tufts = torch.sin(x * 0.3) * torch.sin(y * 0.3 + x * 0.1) * 0.5 + 0.5
    grass = mix((134, 166, 118), (150, 178, 132), tufts)
    grass = over(grass, (206, 220, 224), soft(y - 26 - 3 * torch.sin(x * 0.06), 2))
    dunes = torch.sin(y * 0.28 + 1.2 * torch.sin(x * 0.05)) * 0.5 + 0.5
    sand = mix((204, 184, 148), (224, 206, 172), dunes)
    night = mix((22, 24, 46), (44, 44, 70), down)
    for star_x, star_y in ((12, 14), (34, 40), (50, 12), (70, 30), (92, 10), (116, 38), (22, 70), (60, 84), (104, 66)):
        night = over(night, (225, 225, 215), soft(torch.hypot(x - star_x, y - star_y) - 1.3, 1.5))
    snow = mix((226, 232, 240), (244, 246, 248), down)
    hill = 52 - 12 * torch.cos((x - 30) * 0.05)
    snow = over(snow, (250, 251, 252), soft(hill - y, 3))
    return torch.stack([sky, sea, grass, sand, night, snow]) / 127.5 - 1


def _grid(device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The middles of all pixels: columns and rows, each (H, W)."""
    rows, columns = torch.meshgrid(
        torch.arange(HEIGHT_PX, device=device) + 0.5, torch.arange(WIDTH_PX, device=device) + 0.5, indexing="ij"
    )
    return columns, rows
