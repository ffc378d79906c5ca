"""What is in a picture of the pocket world: a detector with no learnt part, to measure the models by.

Independent of the models. It knows the world's palette and outlines, and nothing of how a picture came about.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from halfreel_pocket import world
from halfreel_pocket.words import COLOURS, MOTIONS, SHAPES

# Of the largest less the smallest channel, in [-1, 1]: backgrounds stay under 0.62, shapes are over 0.94.
_LEAST_SATURATION = 0.78
_FARTHEST_COLOUR = 0.75  # distance in RGB of [-1, 1] at which a pixel is no longer of a palette colour
_LEAST_AREA_PX = 60.0
_MOVED_PX, _GROWN_RATIO = 4.0, 1.12


@dataclass(frozen=True)
class Found:
    """The shapes found in a batch of pictures; every field is a tensor of shape (N,).

    colour, shape: indices into the lists of `words`, -1 where there is no shape. x_px, y_px, radius_px: where it is.
    likeness: overlap with the ideal outline, intersection over union.
    """

    colour: Tensor
    shape: Tensor
    x_px: Tensor
    y_px: Tensor
    radius_px: Tensor
    likeness: Tensor


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch's, typed in part
def find(pictures: Tensor) -> Found:
    """Find the shape in each of `pictures`, (N, 3, H, W) in [-1, 1]."""
    pictures = pictures.float().clamp(-1, 1)
    device, count = pictures.device, len(pictures)
    distance = (pictures[:, None] - world.palette(device)[None, :, :, None, None]).square().sum(2).sqrt()
    saturation = pictures.amax(1) - pictures.amin(1)
    near, nearest = distance.min(1)
    solid = (saturation > _LEAST_SATURATION) & (near < _FARTHEST_COLOUR)
    votes = torch.stack([(solid & (nearest == colour)).sum((1, 2)) for colour in range(len(COLOURS))], 1)
    colour = votes.argmax(1)
    # How much of each pixel the shape covers: full on its colour, none from half way to another colour on.
    own = distance[torch.arange(count, device=device), colour]
    cover = (1.5 - 2 * own / _FARTHEST_COLOUR).clamp(0, 1) * ((saturation - 0.5) / 0.3).clamp(0, 1)
    area = cover.sum((1, 2)).clamp(min=1)
    columns = torch.arange(pictures.shape[3], device=device) + 0.5
    rows = torch.arange(pictures.shape[2], device=device) + 0.5
    middle_x = (cover.sum(1) * columns).sum(1) / area
    middle_y = (cover.sum(2) * rows).sum(1) / area
    best = torch.full((count,), -1.0, device=device)
    shape = torch.zeros(count, dtype=torch.long, device=device)
    radius, place_y = torch.zeros_like(best), middle_y.clone()
    for candidate in range(len(SHAPES)):
        unit_area, unit_drop = _unit(candidate)
        number = torch.full_like(shape, candidate)
        for scale in (0.94, 1.0, 1.06):
            guess = (area / unit_area).sqrt() * scale
            guess_y = middle_y - unit_drop * guess
            x = columns[None, None, :] - middle_x[:, None, None]
            y = rows[None, :, None] - guess_y[:, None, None]
            x, y = torch.broadcast_tensors(x, y)
            ideal = (0.5 - world.OUTLINES[candidate](x, y, guess[:, None, None])).clamp(0, 1)
            likeness = torch.minimum(ideal, cover).sum((1, 2)) / torch.maximum(ideal, cover).sum((1, 2)).clamp(min=1)
            better = likeness > best
            best = torch.where(better, likeness, best)
            shape, radius = torch.where(better, number, shape), torch.where(better, guess, radius)
            place_y = torch.where(better, guess_y, place_y)
    there = (votes.amax(1) > _LEAST_AREA_PX) & (best > 0.5)
    return Found(torch.where(there, colour, -1), torch.where(there, shape, -1), middle_x, place_y, radius, best)


def motion_of(found: Found, frame_count: int) -> Tensor:
    """The motion, index into MOTIONS, of films whose frames `found` holds one film after the other; (N,).

    Compares the means of the first and of the last two frames.
    """

    def change(value: Tensor) -> tuple[Tensor, Tensor]:
        frames = value.unflatten(0, (-1, frame_count))
        return frames[:, :2].mean(1), frames[:, -2:].mean(1)

    names = list(MOTIONS)
    (x, end_x), (y, end_y), (radius, end_radius) = map(change, (found.x_px, found.y_px, found.radius_px))
    across, along = end_x - x, end_y - y
    still = torch.full_like(found.shape[::frame_count], names.index("still"))
    motion = torch.where(end_radius > radius * _GROWN_RATIO, names.index("toward"), still)
    sideways = torch.where(across > 0, names.index("right"), names.index("left"))
    upright = torch.where(along > 0, names.index("down"), names.index("up"))
    moved = torch.maximum(across.abs(), along.abs()) > _MOVED_PX
    return torch.where(moved, torch.where(across.abs() >= along.abs(), sideways, upright), motion)


def _unit(shape: int) -> tuple[float, float]:
    """Area of shape number `shape` at radius 1, and how far below its place its centre of area is."""
    side = 256
    line = (torch.arange(side) + 0.5) / side * 2.6 - 1.3
    y, x = torch.meshgrid(line, line, indexing="ij")
    inside = world.OUTLINES[shape](x, y, torch.ones(1)) < 0
    return float(inside.sum()) * (2.6 / side) ** 2, float(y[inside].mean())
