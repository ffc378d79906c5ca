"""How alike two clips are: PSNR in dB and SSIM, over RGB frames of (frames, height, width, 3)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv2d

_WINDOW, _DEVIATION = 11, 1.5  # as Wang et al., "Image Quality Assessment", IEEE TIP 13(4), 2004
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr_db(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal over the mean squared difference; infinite where both are the same."""
    error = float(((one.astype(np.float64) - other.astype(np.float64)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean structural similarity of brightness over all frames; 1 where both are the same."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    x, y = ((torch.from_numpy(each.copy()).double() @ weights)[:, None] for each in (one, other))
    line = torch.exp(-((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) ** 2) / (2 * _DEVIATION**2))
    window = (line[:, None] * line)[None, None] / line.sum() ** 2
    mean_x, mean_y = conv2d(x, window), conv2d(y, window)
    spread_x, spread_y = conv2d(x * x, window) - mean_x**2, conv2d(y * y, window) - mean_y**2
    shared = conv2d(x * y, window) - mean_x * mean_y
    top = (2 * mean_x * mean_y + _C1) * (2 * shared + _C2)
    return float((top / ((mean_x**2 + mean_y**2 + _C1) * (spread_x + spread_y + _C2))).mean())
