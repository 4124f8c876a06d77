"""A line through points of which some are grossly wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRIMMED = 5  # one residual in so many is left out: MiDaS trims the largest 20 %
STARTS = 100
SAMPLE = 4000
MAX_ROUNDS = 100
REWEIGHTINGS = 5


def fit_trimmed_absolute(p: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float]:
    """Scale s and shift b that make the sum of the smallest 80 % of |s·p + b - target| small.

    The objective has local minima, so the search has several starts, as FAST-LTS has (Rousseeuw and Van Driessen 2006,
    doi 10.1007/s10618-005-0024-4): the least-squares line, and lines through 100 random pairs of points. On at most
    4,000 points, the two best of these lines and the least-squares line are refined: the 80 % with the smallest
    residuals are kept, least absolute residuals over these are found by iterated reweighting, and so on until the
    objective falls by less than 1e-9 of itself, or 100 times. A round that does not lower the objective is undone. The
    best of the three, or the least-squares line where that is better on all points, is refined on all points. Random
    numbers have a fixed seed: the same input gives the same result.

    Args:
        p: N values.
        target: N values.

    Returns:
        Scale and shift; scale 0 and the best constant for a constant `p`. Never worse in the objective than least
        squares.
    """
    if np.ptp(p) == 0:
        return 0.0, _best_constant(target)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(p), SAMPLE, replace=False) if len(p) > SAMPLE else np.arange(len(p))
    centred = p - p.mean()
    slope = float((centred * target).sum() / (centred * centred).sum())
    least_squares = (slope, float(target.mean() - slope * p.mean()))
    first, second = rng.integers(len(chosen), size=(2, STARTS))
    first, second = chosen[first], chosen[second]
    distinct = p[first] != p[second]
    first, second = first[distinct], second[distinct]
    slopes = (target[first] - target[second]) / (p[first] - p[second])
    lines = list(zip(slopes.tolist(), (target[first] - slopes * p[first]).tolist(), strict=True))
    lines.sort(key=lambda line: _objective(p[chosen], target[chosen], line))
    refined = [_refine(p[chosen], target[chosen], line) for line in (least_squares, *lines[:2])]
    best = min(refined, key=lambda line: _objective(p[chosen], target[chosen], line))
    start = min((best, least_squares), key=lambda line: _objective(p, target, line))
    return _refine(p, target, start)


def _best_constant(target: NDArray[np.float64]) -> float:
    """The values that it keeps are neighbours in their order, and it is their median: every such run is tried."""
    runs = np.arange(len(target) // TRIMMED + 1)
    ordered = np.sort(target)
    medians = ordered[runs + _number_kept(len(target)) // 2]
    sums = np.concatenate([[0.0], np.cumsum(ordered - np.median(ordered))])
    kept = _number_kept(len(target))
    upper = sums[runs + kept] - sums[runs + kept - kept // 2]
    lower = sums[runs + kept // 2] - sums[runs]
    return float(medians[np.argmin(upper - lower)])


def _objective(p: NDArray[np.float64], target: NDArray[np.float64], line: tuple[float, float]) -> float:
    residuals = np.abs(line[0] * p + line[1] - target)
    kept = _number_kept(len(p))
    return float(np.partition(residuals, kept - 1)[:kept].sum())


def _number_kept(number: int) -> int:
    return number - number // TRIMMED


def _refine(p: NDArray[np.float64], target: NDArray[np.float64], line: tuple[float, float]) -> tuple[float, float]:
    best = _objective(p, target, line)
    for _ in range(MAX_ROUNDS):
        residuals = np.abs(line[0] * p + line[1] - target)
        kept = np.argpartition(residuals, _number_kept(len(p)) - 1)[: _number_kept(len(p))]
        candidate = _least_absolute(p[kept], target[kept], line)
        value = _objective(p, target, candidate)
        if not value < best:
            break
        line, gain, best = candidate, best - value, value
        if gain <= 1e-9 * best:
            break
    return line


def _least_absolute(
    p: NDArray[np.float64], target: NDArray[np.float64], line: tuple[float, float]
) -> tuple[float, float]:
    """Iterated reweighted least squares: weights 1/|residual|, bounded where a residual vanishes."""
    for _ in range(REWEIGHTINGS):
        residuals = np.abs(line[0] * p + line[1] - target)
        floor = 1e-9 * max(float(np.abs(target).max()), 1e-300)
        weights = 1 / np.maximum(residuals, floor)
        total = weights.sum()
        # Not np.dot: its last digits depend on the number of threads.
        mean_p, mean_t = (weights * p).sum() / total, (weights * target).sum() / total
        centred = p - mean_p
        variance = (weights * centred * centred).sum()
        if variance <= 0:
            break
        scale = float((weights * centred * (target - mean_t)).sum() / variance)
        line = (scale, float(mean_t - scale * mean_p))
    return line
