"""Depth that is known at some pixels only, as a model takes it that was trained for depth completion.

Such a model predicts log depth in the units of the points, so that it needs no fit afterwards. Its depth map is
normalised by bounds that follow from the known points alone, in training as in inference:

    l_i = log d_i of the n known points;  [q_2, q_98] their 2 % and 98 % quantiles
    c = (q_2 + q_98) / 2,  s = max(q_98 - q_2, log 2),  h = s (1/2 + 1/10 + 1 / max(n - 1, 1))
    log d_near = c - h,  log d_far = c + h
    y = (log d - c) / h, clipped to [-1, 1];  d = exp(c + h y)

The quantiles leave out a few wrong points at each end. The margin of a tenth is for depths beyond them, and 1/(n - 1)
is what the range of n points, spread evenly over a scene's range, falls short of it at each end on average. The least
range, a factor of two, is for single points and flat scenes. y is clipped because the autoencoder is trained on
[-1, 1]: a depth in a hole that lies beyond the bounds is learnt as the bound itself. Predictions are not clipped.

The known points reach the network as further input channels, see `partial_depth_maps`.
"""

from __future__ import annotations

import math

import numpy as np
import torch

POINT_QUANTILES = (0.02, 0.98)
MARGIN = 0.1
LEAST_RANGE = math.log(2)
NUM_MAPS = 3


def is_known(depth: torch.Tensor) -> torch.Tensor:
    """Returns where depth in metres is known: finite and positive. The shape stays."""
    return torch.isfinite(depth) & (depth > 0)


def point_bounds(points: torch.Tensor) -> tuple[float, float]:
    """Returns the bounds that the known points set, see the module.

    Args:
        points: Depth in metres, of any shape; not known where it is 0, negative or not finite.

    Returns:
        log d_near and log d_far, log metres.

    Raises:
        ValueError: If no point is known.
    """
    values = points[is_known(points)].double().log().cpu().numpy()
    if len(values) == 0:
        raise ValueError("`points` has no known depth: at least one pixel must be positive and finite.")
    low, high = (float(q) for q in np.quantile(values, POINT_QUANTILES))
    half = max(high - low, LEAST_RANGE) * (0.5 + MARGIN + 1 / max(len(values) - 1, 1))
    return (low + high) / 2 - half, (low + high) / 2 + half


def normalize_between(depth: torch.Tensor, log_near: float, log_far: float) -> torch.Tensor:
    """Returns the normalised log depth, clipped to [-1, 1]; 1 (far) where the depth is not known.

    Args:
        depth: Metres, of any shape; not known where it is 0, negative or not finite.
        log_near: Becomes -1, log metres.
        log_far: Becomes 1, log metres; more than `log_near`.
    """
    known = is_known(depth)
    log_depth = torch.where(known, depth, 1.0).log()
    values = (2 * (log_depth - log_near) / (log_far - log_near) - 1).clamp(-1, 1)
    return torch.where(known, values, 1.0)


def fill_nearest(values: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills holes with the value of the nearest known pixel (Euclidean, exact).

    Args:
        values: H×W.
        known: H×W, bool; somewhere true.

    Returns:
        The filled values, H×W, and the distance to the nearest known pixel, H×W, float32 pixels, 0 where known.

    Raises:
        ValueError: If no pixel is known.
    """
    if not known.any():
        raise ValueError("`known` is false everywhere: there is no value to fill the holes with.")
    height, width = known.shape
    rows = torch.arange(height, device=known.device)[:, None].expand(height, width)
    far = 2 * (height + width)
    # In each column, the nearest known row above and below.
    above = torch.where(known, rows, -far).cummax(dim=0).values
    below = torch.where(known, rows, height + far).flip(0).cummin(dim=0).values.flip(0)
    source_row = torch.where(rows - above <= below - rows, above, below)
    squared = (rows - source_row).square()
    columns = torch.arange(width, device=known.device)
    across = (columns[:, None] - columns).square()
    # In each row, the column whose nearest known pixel is nearest; row by row, as all at once need H×W×W values.
    best = [(across + line).min(dim=1) for line in squared]
    source_column = torch.stack([one.indices for one in best])
    distance = torch.stack([one.values for one in best]).float().sqrt()
    return values[source_row.gather(1, source_column), source_column], distance


def partial_depth_maps(points: torch.Tensor, bounds: tuple[float, float] | None, cell: int) -> torch.Tensor:
    """Makes the maps that say what is known, for `pipelines.depthfm.further_channels.encode_partial_depth`.

    Args:
        points: 1×H×W, metres; not known where it is 0, negative or not finite.
        bounds: log d_near and log d_far, see `point_bounds`; `None` if no point is known.
        cell: Pixels per latent cell, along one side.

    Returns:
        3×H×W, float32: the normalised log depth in [-1, 1], holes filled from the nearest known pixel; the proximity
        cell / (cell + distance to the nearest known pixel) in (0, 1]; and 1 where the depth is known, else 0. All of
        them are 0 if no point is known.
    """
    if bounds is None:
        return torch.zeros(NUM_MAPS, *points.shape[-2:], device=points.device)
    known = is_known(points)[0]
    filled, distance = fill_nearest(normalize_between(points, *bounds)[0].float(), known)
    return torch.stack([filled, cell / (cell + distance), known.float()])


def move_points(points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Brings sparse depth to another size: each known pixel moves, and none is mixed with another.

    Args:
        points: 1×H×W, metres; not known where it is 0, negative or not finite.
        size: New height and width.

    Returns:
        1×height×width, float32 metres, 0 where not known. Where several known pixels fall on one, it is the one whose
        centre is nearest to that pixel's.
    """
    if tuple(points.shape[-2:]) == tuple(size):
        return torch.where(is_known(points), points, 0.0).float()
    row, column = is_known(points)[0].nonzero(as_tuple=True)
    y = (row + 0.5) * (size[0] / points.shape[-2])
    x = (column + 0.5) * (size[1] / points.shape[-1])
    new_row, new_column = y.floor().long().clamp(max=size[0] - 1), x.floor().long().clamp(max=size[1] - 1)
    offset = (y - new_row - 0.5).square() + (x - new_column - 0.5).square()
    # The nearest is written last: NumPy keeps the last value that is given for an index.
    order = offset.sort(descending=True, stable=True).indices.cpu().numpy()
    moved = np.zeros(size, dtype=np.float32)
    values = points[0, row, column].float().cpu().numpy()
    moved[new_row.cpu().numpy()[order], new_column.cpu().numpy()[order]] = values[order]
    return torch.from_numpy(moved)[None].to(points.device)
