"""How much two pictures are alike: PSNR, and SSIM after Wang et al. 2004. Knows nothing of models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WINDOW = 7  # pixels a side, uniform; the constants are those of the paper for 8-bit values
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr_db(frames: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Peak signal to noise over all frames, in decibels; infinite where they are the same."""
    error = float(np.mean((frames.astype(np.float64) - reference) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def ssim(frames: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Structural similarity of the brightness, the mean over frames; 1 where they are the same.

    Args:
        frames: RGB, of shape (frames, height, width, 3), both sides at least 7.
        reference: of the same shape.
    """
    weights = np.array([0.299, 0.587, 0.114])
    found = []
    for one, other in zip(frames, reference, strict=True):
        x, y = one @ weights, other @ weights
        mean_x, mean_y = _smooth(x), _smooth(y)
        of_x, of_y = _smooth(x * x) - mean_x**2, _smooth(y * y) - mean_y**2
        of_both = _smooth(x * y) - mean_x * mean_y
        alike = (2 * mean_x * mean_y + _C1) * (2 * of_both + _C2)
        found.append(float(np.mean(alike / ((mean_x**2 + mean_y**2 + _C1) * (of_x + of_y + _C2)))))
    return float(np.mean(found))


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over every whole window."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    n = _WINDOW
    windows: NDArray[np.float64] = sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]
    return windows / n**2
