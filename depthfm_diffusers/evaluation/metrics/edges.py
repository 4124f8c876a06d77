"""Errors at the edges of objects, where blurred depth puts points between foreground and background, and elsewhere."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from .masks import check_maps, per_image

# A pixel is at an edge if a valid pixel beside, above or below it is so many times as far, or as near: the largest
# ratio of Depth Pro's edges (`boundary`), which sloping surfaces do not reach.
EDGE_RATIO = 1.25
# Sides in pixels of the squares of the soft edge error.
SQUARES = (3, 5, 7)


def edge_errors(
    depth: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Computes errors at edges and away from them; 0 is perfect.

    The soft edge error (Chen et al. 2019, "On the over-smoothing problem of CNN based disparity estimation", there of
    disparity in pixels) compares each pixel at an edge with all true depths around it and takes the smallest error. An
    edge that is sharp, but a pixel off, costs little; a depth between the two sides costs much. Here the error is
    relative, |d - d*| / d*.

    Args:
        depth: (..., H, W), aligned, positive where valid.
        truth: Likewise.
        valid: Boolean, likewise.

    Returns:
        `see3`, `see5`, `see7`: the means over the pixels at edges, with the true depths of valid pixels in a square
        of k×k pixels around each. `abs_rel_edges`: AbsRel of the valid pixels whose square of 7×7 has a pixel at an
        edge; `abs_rel_away`: AbsRel of the others. Each is of shape (...); NaN where there is no such pixel.

    Raises:
        ValueError: If shapes differ or an image has no valid pixel.
    """
    check_maps(valid, depth=depth, truth=truth)
    rows = [_image_errors(*maps) for maps in per_image(depth, truth, valid)]
    return {name: np.array([row[name] for row in rows]).reshape(valid.shape[:-2])[()] for name in rows[0]}


def _image_errors(
    depth: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> dict[str, float]:
    d, t = (np.where(valid, values, 1).astype(np.float64) for values in (depth, truth))
    at_edge = np.zeros_like(valid)
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        ratio = t[one] / t[other]
        is_edge = valid[one] & valid[other] & (np.maximum(ratio, 1 / ratio) > EDGE_RATIO)
        at_edge[one] |= is_edge
        at_edge[other] |= is_edge
    margin = SQUARES[-1] // 2
    near_edge = np.zeros_like(valid)
    padded = np.pad(t, margin, constant_values=np.nan)
    padded[margin:-margin, margin:-margin][~valid] = np.nan
    rows, columns = np.nonzero(at_edge)
    smallest = dict.fromkeys(SQUARES, np.full(len(rows), np.inf))
    for down, right in itertools.product(range(-margin, margin + 1), repeat=2):
        around = padded[rows + down + margin, columns + right + margin]
        error = np.abs(d[rows, columns] - around) / around
        for side in SQUARES:
            if max(abs(down), abs(right)) <= side // 2:
                smallest[side] = np.fmin(smallest[side], error)
        row, column = rows + down, columns + right
        inside = (row >= 0) & (row < t.shape[0]) & (column >= 0) & (column < t.shape[1])
        near_edge[row[inside], column[inside]] = True
    relative = np.abs(d - t) / t
    return {
        **{f"see{side}": _mean(smallest[side]) for side in SQUARES},
        "abs_rel_edges": _mean(relative[valid & near_edge]),
        "abs_rel_away": _mean(relative[valid & ~near_edge]),
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else np.nan
