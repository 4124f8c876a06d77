"""What depth completion is compared with: interpolation without a network, and a network's map fitted to the points.

Each takes depth H×W in metres, 0 where it is not known, and returns H×W.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.ndimage import uniform_filter
from scipy.signal import fftconvolve

from depthfm_diffusers.metric import fit_points

Map = NDArray[np.float64]
SPACES = ("log", "depth", "disparity")


def nearest(depth: Map) -> Map:
    """The depth of the nearest point."""
    rows, columns = np.nonzero(depth)
    return NearestNDInterpolator(np.c_[rows, columns], depth[rows, columns])(*np.indices(depth.shape))


def linear(depth: Map) -> Map:
    """Linear in the triangles of Delaunay; outside of their hull, the nearest point."""
    rows, columns = np.nonzero(depth)
    if len(rows) < 4:
        return nearest(depth)
    inside = LinearNDInterpolator(np.c_[rows, columns], depth[rows, columns])(*np.indices(depth.shape))
    return np.where(np.isfinite(inside), inside, nearest(depth))


def natural_neighbour(depth: Map) -> Map:
    """Sibson's interpolation on the grid of pixels (Park et al. 2006, Discrete Sibson Interpolation).

    Each pixel gives the depth of its nearest point to all pixels of the disc that reaches to that point. Radii are
    rounded to pixels.
    """
    rows, columns = np.nonzero(depth)
    y, x = np.indices(depth.shape)
    index = NearestNDInterpolator(np.c_[rows, columns], np.arange(len(rows)))(y, x).astype(int)
    radii = np.hypot(y - rows[index], x - columns[index]).round().astype(int)
    values, total, weight = depth[rows, columns][index], np.zeros(depth.shape), np.zeros(depth.shape)
    for radius in np.unique(radii):
        own = (radii == radius).astype(np.float64)
        if radius == 0:
            total, weight = total + own * values, weight + own
            continue
        offsets = np.arange(-radius, radius + 1)
        disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
        total += fftconvolve(own * values, disc, mode="same")
        weight += fftconvolve(own, disc, mode="same")
    return total / np.maximum(weight, 1e-9)


def guided_filter(depth: Map, image: NDArray[np.uint8], epsilon: float = 1e-3) -> Map:
    """The guided filter (He et al. 2013) with the grey image as guide, over the points only.

    In windows, d = s·grey + o is fitted to the points. Windows grow by factors of 2 until each pixel has three points.
    """
    grey, known = image.mean(axis=-1) / 255, (depth > 0).astype(np.float64)
    result = np.full(depth.shape, np.nan)
    radius = 4
    while np.isnan(result).any():

        def mean(values: Map, size: int = 2 * radius + 1) -> Map:
            return uniform_filter(values, size, mode="constant")

        share = mean(known)
        enough = share * (2 * radius + 1) ** 2 > 2.5
        share = np.maximum(share, 1e-12)
        of_grey, of_depth = mean(known * grey) / share, mean(known * depth) / share
        covariance = mean(known * grey * depth) / share - of_grey * of_depth
        variance = mean(known * grey * grey) / share - of_grey**2
        slope = np.where(enough, covariance / (variance + epsilon), 0)
        offset = np.where(enough, of_depth - slope * of_grey, 0)
        weight = mean(enough.astype(np.float64))
        filtered = (mean(slope) * grey + mean(offset)) / np.maximum(weight, 1e-12)
        result = np.where(np.isnan(result) & enough, filtered, result)
        radius *= 2
        if radius > 2 * max(depth.shape):
            return np.where(np.isnan(result), nearest(depth), result)
    return np.clip(result, depth[depth > 0].min(), depth.max())


def fitted(depth: Map, log_depth: Map, space: str) -> Map:
    """A predicted log depth map, brought to metres by a robust fit of scale and shift to the points in a space."""
    rows, columns = np.nonzero(depth)
    points = np.c_[columns, rows, depth[rows, columns]]
    try:
        return fit_points(log_depth, points, space).apply(log_depth).astype(np.float64)
    except ValueError:  # no rising line
        return np.full(depth.shape, np.median(depth[depth > 0]))
