"""Error measures of one aligned depth map, over its valid pixels, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _valid_pairs(
    depth: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not depth.shape == truth.shape == valid.shape:
        raise ValueError(
            f"`depth`, `truth` and `valid` must have one shape, got {depth.shape}, {truth.shape}, {valid.shape}."
        )
    if not valid.any():
        raise ValueError("`valid` marks no pixel: there is nothing to measure.")
    return depth[valid].astype(np.float64), truth[valid].astype(np.float64)


def absolute_relative_error(
    depth: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> float:
    """AbsRel: mean of |d - d*| / d*; 0 is perfect.

    Args:
        depth: Aligned depth, metres, any shape.
        truth: True depth d*, metres, same shape.
        valid: Boolean, same shape.

    Raises:
        ValueError: If shapes differ or no pixel is valid.
    """
    d, t = _valid_pairs(depth, truth, valid)
    return float(np.mean(np.abs(d - t) / t))


def delta_accuracy(
    depth: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_], power: int = 1
) -> float:
    """δ: share of pixels with max(d / d*, d* / d) < 1.25^`power`; 1 is perfect.

    Args:
        depth: Aligned depth, metres, any shape; positive.
        truth: True depth d*, metres, same shape.
        valid: Boolean, same shape.
        power: 1, 2 or 3 for δ1, δ2, δ3.

    Raises:
        ValueError: If shapes differ or no pixel is valid.
    """
    d, t = _valid_pairs(depth, truth, valid)
    return float(np.mean(np.maximum(d / t, t / d) < 1.25**power))
