"""Straight lines through points: by least squares, or robust against points that are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Up to this many points, the line of every pair is tried; of more points, that many random pairs.
ALL_PAIRS_UP_TO = 40
RANDOM_PAIRS = 500
# Lines are compared by their residuals at no more points than this.
SCORED_POINTS = 2000
# From the median absolute residual to the standard deviation of a Gaussian; and the limit of Tukey's biweight at which
# a fit to Gaussian noise is 95 % as precise as least squares (Maronna et al. 2019, Robust Statistics).
MEDIAN_TO_DEVIATION, BIWEIGHT_LIMIT = 1.4826, 4.685
MAX_ITERATIONS = 50


@dataclass(frozen=True)
class RobustLine:
    """A line scale·p + shift, and the points that it was fitted to.

    Attributes:
        scale: Slope; not positive only if no line through two of the points rises.
        shift: Value at p = 0.
        inliers: N, whether a point has a weight in the fit.
    """

    scale: float
    shift: float
    inliers: NDArray[np.bool_]


def fit_least_squares(
    p: NDArray[np.float64], target: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> tuple[float, float]:
    """Fits s·p + b = target by least squares (N values each): s and b; s is 0 for a constant `p`.

    `weights` are N values of at least 0, not all of them 0; `None` weights all points alike.
    """
    # The mean of equal numbers is not always that number: their variance would be rounding, not zero.
    if np.ptp(p) == 0:
        return 0.0, float(np.average(target, weights=weights))
    p_mean, target_mean = np.average(p, weights=weights), np.average(target, weights=weights)
    centred = p - p_mean
    weighted = centred if weights is None else weights * centred
    # Not np.dot: its last digits depend on the number of threads.
    variance = (weighted * centred).sum()
    scale = float((weighted * target).sum() / variance) if variance > 0 else 0.0
    return scale, float(target_mean - scale * p_mean)


def fit_robust_line(p: NDArray[np.float64], target: NDArray[np.float64], tolerance: float) -> RobustLine:
    """Fits s·p + b = target with s > 0, though up to nearly half of the points may be wrong.

    An MM-estimate: of the rising lines through two points, the one with the smallest median residual gives the scale
    of the residuals, and is then improved by least squares with Tukey's biweight. The same points always give the same
    line. Fewer than four points are fitted without looking for wrong ones, as any two of them lie on a line.

    Args:
        p: N ≥ 2 finite values.
        target: N finite values.
        tolerance: No point is taken for wrong whose residual is less than this, in units of `target`.

    Returns:
        The line. If no pair of points rises, it is that of least squares, with all points as inliers.
    """
    start = _least_median_line(p, target) if len(p) > 3 else None
    if start is None:
        return RobustLine(*fit_least_squares(p, target), np.ones(len(p), dtype=bool))
    scale, shift, residual = start
    deviation = MEDIAN_TO_DEVIATION * (1 + 5 / (len(p) - 2)) * residual
    limit = max(BIWEIGHT_LIMIT * deviation, tolerance)
    weights = _biweight(scale * p + shift - target, limit)
    for _ in range(MAX_ITERATIONS):
        before = scale, shift
        scale, shift = fit_least_squares(p, target, weights)
        weights = _biweight(scale * p + shift - target, limit)
        if np.allclose((scale, shift), before, rtol=1e-12, atol=1e-12):
            break
    return RobustLine(scale, shift, weights > 0)


def _least_median_line(p: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Returns scale, shift and median absolute residual of the best rising line through two points, if any rises."""
    count = len(p)
    if count <= ALL_PAIRS_UP_TO:
        first, second = np.triu_indices(count, 1)
    else:
        first, second = np.random.default_rng(0).integers(count, size=(2, RANDOM_PAIRS))
    run, rise = p[second] - p[first], target[second] - target[first]
    rising = run * rise > 0
    if not rising.any():
        return None
    first, scales = first[rising], rise[rising] / run[rising]
    shifts = target[first] - scales * p[first]
    scored = np.linspace(0, count - 1, min(count, SCORED_POINTS)).round().astype(int)
    # Two residuals are zero by construction: this is the rank that tolerates most wrong points.
    rank = (len(scored) + 3) // 2 - 1
    residuals = np.abs(scales[:, None] * p[scored] + shifts[:, None] - target[scored])
    residuals = np.partition(residuals, rank, axis=1)[:, rank]
    best = int(np.argmin(residuals))
    return float(scales[best]), float(shifts[best]), float(residuals[best])


def _biweight(residuals: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    return np.square(np.clip(1 - np.square(residuals / limit), 0, None))
