"""Sharpness of depth at occlusion edges, as Depth Pro measures it (arXiv 2410.02073, section 4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .masks import check_maps

THRESHOLDS = np.linspace(1.05, 1.25, 10)


def boundary_f1(
    depth: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """F1 score of occlusion edges in [0, 1]; 1 is perfect. The scale of either map does not matter.

    Between two neighbouring pixels there is an occlusion edge at threshold t if one is more than t times as far as the
    other; left, right, up and down (which of the two is nearer) are four kinds of edge. For each t, precision and
    recall are means over the four kinds, a kind without edges counting as 0, and the F1 score is theirs. The result
    is the mean over ten thresholds from 1.05 to 1.25, weighted by t. Pairs count whose two pixels are both valid.

    Args:
        depth: (..., H, W), positive where valid.
        truth: Likewise.
        valid: Boolean, likewise.

    Returns:
        (...). NaN for an image whose truth has no edge at the lowest threshold: there is nothing to find. (Depth Pro's
        code gives 0 there, and so does this one at the single thresholds.)

    Raises:
        ValueError: If shapes differ, an image has no valid pixel, or a valid pixel is not positive and finite.
    """
    check_maps(valid, depth=depth, truth=truth)
    found, true = _ratios(depth, valid, "depth"), _ratios(truth, valid, "truth")
    f1 = np.zeros(valid.shape[:-2])
    for threshold in THRESHOLDS:
        hits, positives, edges = (
            np.stack([np.count_nonzero(edge, axis=(-2, -1)) for edge in kinds])
            for kinds in (
                [(f > threshold) & (t > threshold) for f, t in zip(found, true, strict=True)],
                [f > threshold for f in found],
                [t > threshold for t in true],
            )
        )
        precision = (hits / np.maximum(positives, 1)).mean(0)
        recall = (hits / np.maximum(edges, 1)).mean(0)
        total = precision + recall
        f1 += threshold * np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0)
    has_edge = np.any([(t > THRESHOLDS[0]).any(axis=(-2, -1)) for t in true], axis=0)
    return np.where(has_edge, f1 / THRESHOLDS.sum(), np.nan)[()]


def _ratios(depth: NDArray[np.floating], valid: NDArray[np.bool_], name: str) -> list[NDArray[np.float64]]:
    """How many times as far the neighbour at the right, left, below and above is; 1 where that is not known.

    Ratios and not differences of logarithms, which would make edges of some exact ratios of 1.25, common in depths of
    whole centimetres.
    """
    d = np.where(valid, depth, 1).astype(np.float64)
    if not (np.isfinite(d).all() and (d > 0).all()):
        raise ValueError(f"`{name}` must be positive and finite wherever `valid` is true.")
    pairs = [(d[..., 1:], d[..., :-1]), (d[..., 1:, :], d[..., :-1, :])]
    known = [valid[..., 1:] & valid[..., :-1], valid[..., 1:, :] & valid[..., :-1, :]]
    return [
        np.where(k, a / b, 1)
        for (far, near), k in zip(pairs, known, strict=True)
        for a, b in ((far, near), (near, far))
    ]
