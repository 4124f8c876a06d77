"""Log depth from frame to frame: robust fits of scale and shift, and warping along the optical flow.

The flow is OpenCV's DIS (extra `video`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .utils.imports import import_optional

Map = NDArray[np.float32]

# Grey levels by which a pixel and its place in the frame before may differ, after a common change of brightness.
GREY_TOLERANCE = 16.0
# A cut: fewer than this share of the pixels are found again in the frame before.
FOUND_AT_CUT = 0.42
# Standard deviation of the blur of a mask's steps, pixels.
SOFTNESS = 1.5
# Rounds of the robust fit; residuals beyond this many times their median do not count.
FIT_ROUNDS, FIT_LIMIT = 8, 3.0
MIN_FIT_PIXELS = 64


def optical_flow(grey: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns where the pixels of one picture are in another, by DIS flow.

    Args:
        grey: H×W.
        other: H×W.

    Returns:
        H×W×2: what to add to the column and the row of a pixel of `grey`, pixels.
    """
    cv2 = _cv2()
    height, width = grey.shape
    if min(height, width) < 16:  # DIS has no patch that fits
        return np.zeros((height, width, 2), np.float32)
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(flow.calc(grey, other, None), np.float32)


def warp(values: NDArray, flow: NDArray[np.float32]) -> NDArray:
    """Fetches the values of another picture to the pixels of this one, bilinearly; beyond the edge, those of the edge.

    Args:
        values: H×W of the other picture, float32 or uint8.
        flow: From `optical_flow`.
    """
    cv2 = _cv2()
    height, width = values.shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(
        values, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def found_again(grey: NDArray[np.uint8], before: NDArray[np.uint8], flow: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns which pixels are seen in the frame before: those that look the same there, and lie inside the picture.

    Single pixels go with most of their 5×5 neighbours: of a texture, the flow finds some by chance and misses some.

    Args:
        grey: H×W, this frame.
        before: H×W, the frame before.
        flow: From this frame to the one before.
    """
    height, width = grey.shape
    columns, rows = np.arange(width) + flow[..., 0], np.arange(height)[:, None] + flow[..., 1]
    inside = (columns >= 0) & (columns <= width - 1) & (rows >= 0) & (rows <= height - 1)
    difference = warp(before, flow).astype(np.float32) - grey
    if inside.any():
        difference -= np.median(difference[inside])  # exposure changes from frame to frame
    found = inside & (np.abs(difference) < GREY_TOLERANCE)
    return _cv2().medianBlur(found.astype(np.uint8), 5) > 0


def soften(mask: NDArray[np.bool_]) -> Map:
    """Returns weights from 0 to 1 whose steps are smooth: a sharp step between two maps would be seen as an edge."""
    return np.asarray(_cv2().GaussianBlur(mask.astype(np.float32), (0, 0), SOFTNESS))


def fit_scale_and_shift(current: Map, before: Map, weights: Map) -> tuple[float, float] | None:
    """Fits scale·current + shift = before, robustly, for two maps that are both noisy.

    The slope is the ratio of the weighted standard deviations (reduced major axis): least squares would take it
    smaller the noisier `current` is, and over many frames the scale would go to zero.

    Args:
        current: H×W log depth of this frame.
        before: H×W log depth of the frame before, at the pixels of this one.
        weights: H×W, at least 0.

    Returns:
        Scale and shift; `None` if too few pixels count, or one of the maps is flat.
    """
    chosen = weights > 0
    if np.count_nonzero(chosen) < MIN_FIT_PIXELS:
        return None
    x, y, given = (one[chosen].astype(np.float64) for one in (current, before, weights))
    scale, shift = 1.0, float(np.median(y - x))  # nearly: consecutive frames differ little
    for _ in range(FIT_ROUNDS):
        residual = np.abs(scale * x + shift - y)
        limit = FIT_LIMIT * max(float(np.median(residual)), 1e-6)
        w = given * np.clip(1 - (residual / limit) ** 2, 0, None) ** 2
        total = w.sum()
        if total <= 0:
            return None
        x_mean, y_mean = (w * x).sum() / total, (w * y).sum() / total
        x_spread, y_spread = (w * (x - x_mean) ** 2).sum(), (w * (y - y_mean) ** 2).sum()
        if min(x_spread, y_spread) <= 1e-12 * total:
            return None
        scale = float(np.sqrt(y_spread / x_spread))
        shift = float(y_mean - scale * x_mean)
    return scale, shift


def _cv2() -> Any:
    return import_optional("cv2", "video", "Steady depth of videos")
