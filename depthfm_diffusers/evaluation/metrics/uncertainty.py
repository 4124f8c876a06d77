"""Measures of an uncertainty map: whether it is large where the error is large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .masks import check_maps, per_image


@dataclass(frozen=True)
class Sparsification:
    """Curves of the mean error of the remaining pixels when pixels are removed, relative to that of all pixels.

    Attributes:
        fractions: K, shares of pixels removed, from 0 to just below 1.
        by_uncertainty: (..., K); the most uncertain are removed first.
        oracle: (..., K); those of the largest error are removed first: no uncertainty can do better.
        area: (...), area between the two (AUSE): 0 is perfect; larger is worse.
    """

    fractions: NDArray[np.float64]
    by_uncertainty: NDArray[np.float64]
    oracle: NDArray[np.float64]
    area: NDArray[np.float64]


def sparsification_error(
    uncertainty: NDArray[np.floating], error: NDArray[np.floating], valid: NDArray[np.bool_], steps: int = 100
) -> Sparsification:
    """Area under the sparsification error curve (Ilg et al. 2018, arXiv 1802.07095, section 5).

    Pixels of equal uncertainty share their mean error, which is what removing them in random order gives on average: a
    constant map gives a flat curve, whatever the pixels' order. The area is integrated by trapezoids from 0 to the
    last fraction, 1 - 1/`steps`.

    Args:
        uncertainty: (..., H, W), larger is less certain.
        error: (..., H, W), at least 0.
        valid: Boolean, likewise.
        steps: Number K of fractions, 0, 1/K, 2/K, …; at least 2.

    Raises:
        ValueError: If shapes differ, an image has no valid pixel, a valid value is not finite, an error is negative,
            or `steps` is less than 2.
    """
    _check(uncertainty, error, valid)
    if steps < 2:
        raise ValueError(f"`steps` must be at least 2, got {steps}.")
    if (error[valid] < 0).any():
        raise ValueError("`error` must be at least 0 wherever `valid` is true.")
    fractions = np.arange(steps) / steps
    curves = []
    for u, e, v in per_image(uncertainty, error, valid):
        errors = e[v].astype(np.float64)
        scale = errors.mean()
        # In integers: 0.29 * 100 is less than 29.
        left = len(errors) - np.arange(steps) * len(errors) // steps
        both = [_remaining_error(order, errors, left) for order in (u[v], errors)]
        # Without any error every order is perfect.
        curves.append([curve / scale if scale > 0 else np.ones(steps) for curve in both])
    shape = valid.shape[:-2]
    by_uncertainty, oracle = (np.array([c[i] for c in curves]).reshape(*shape, steps) for i in (0, 1))
    area = np.trapezoid(by_uncertainty - oracle, fractions, axis=-1)
    return Sparsification(fractions, by_uncertainty, oracle, np.asarray(area)[()])


def rank_correlation(
    uncertainty: NDArray[np.floating], error: NDArray[np.floating], valid: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Spearman's rank correlation of uncertainty and error over the valid pixels, in [-1, 1]; 1 is perfect.

    Equal values have the mean of their ranks. NaN for an image in which either map is constant.

    Args:
        uncertainty: (..., H, W).
        error: (..., H, W).
        valid: Boolean, likewise.

    Returns:
        (...).

    Raises:
        ValueError: If shapes differ, an image has no valid pixel, or a valid value is not finite.
    """
    _check(uncertainty, error, valid)
    results = []
    for u, e, v in per_image(uncertainty, error, valid):
        ranks = [_average_ranks(values[v]) for values in (u, e)]
        first, second = (rank - rank.mean() for rank in ranks)
        # Not np.dot: its last digits depend on the number of threads.
        norm = np.sqrt((first * first).sum() * (second * second).sum())
        results.append((first * second).sum() / norm if norm > 0 else np.nan)
    return np.array(results).reshape(valid.shape[:-2])[()]


def _check(uncertainty: NDArray[np.floating], error: NDArray[np.floating], valid: NDArray[np.bool_]) -> None:
    check_maps(valid, uncertainty=uncertainty, error=error)
    for name, values in (("uncertainty", uncertainty), ("error", error)):
        if not np.isfinite(values[valid]).all():
            raise ValueError(f"`{name}` has non-finite values among the valid pixels.")


def _remaining_error(
    order: NDArray[np.floating], errors: NDArray[np.float64], left: NDArray[np.int_]
) -> NDArray[np.float64]:
    """Mean error of the pixels with the smallest `order`, of as many as `left` says."""
    _, group, counts = np.unique(order, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=errors) / counts
    kept = np.cumsum(np.repeat(means, counts))  # of the first 1, 2, … pixels, the most certain first
    return kept[left - 1] / left


def _average_ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]
