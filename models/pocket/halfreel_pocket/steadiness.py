"""How steady a film of the pocket world is: its background should not change at all, and its shape not leap.

Knows nothing of what a film should show.
"""

import torch
from torch import Tensor

from halfreel_pocket.detector import Found

# No shape comes so near to the upper and the lower edge: what changes there is the background.
_EDGE_PX = 4


def drift(frames: Tensor) -> float:
    """How far the background of `frames`, (F, 3, H, W) in [-1, 1], gets from the first one's: mean over it, at most."""
    edge = _edge(frames)
    return float((edge - edge[:1]).abs().mean(dim=(1, 2, 3)).max())


def flicker(frames: Tensor) -> float:
    """How much the background changes from one of `frames`, (F, 3, H, W) in [-1, 1], to the next: mean, at most."""
    return float(_edge(frames).diff(dim=0).abs().mean(dim=(1, 2, 3)).max())


def jump_px(found: Found) -> float:
    """How far the shape of a film leaves its steady way from one frame to the next, at most, in pixels."""
    steps = torch.hypot(found.x_px.diff(), found.y_px.diff())
    return float((steps - steps.median()).abs().max())


def _edge(frames: Tensor) -> Tensor:
    return torch.cat([frames[:, :, :_EDGE_PX], frames[:, :, -_EDGE_PX:]], 2)
