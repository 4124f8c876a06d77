"""Maps with masks, one image or a batch of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.imports import import_optional


def check_maps(valid: NDArray[np.bool_], **maps: NDArray[np.floating]) -> None:
    """Checks maps (..., H, W) against their mask.

    Raises:
        ValueError: If a map is not of the mask's shape, the mask is not boolean, or an image has no valid pixel.
    """
    for name, values in maps.items():
        if values.shape != valid.shape:
            shapes = ", ".join(f"`{n}` {m.shape}" for n, m in maps.items())
            raise ValueError(f"`{name}` and `valid` must have one shape, got {shapes}, `valid` {valid.shape}.")
    if valid.dtype != np.bool_:
        raise ValueError(f"`valid` must be boolean, got {valid.dtype}.")
    if valid.ndim < 2:
        raise ValueError(f"Maps must be (..., H, W), got shape {valid.shape}.")
    empty = ~valid.any(axis=(-2, -1))
    if empty.any():
        which = f" of image {tuple(map(int, np.argwhere(empty)[0]))}" if empty.ndim else ""
        raise ValueError(f"`valid` marks no pixel{which}: there is nothing to measure.")


def per_image(*maps: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Walks over a batch: H×W maps of one image after the other."""
    return zip(*(m.reshape(-1, *m.shape[-2:]) for m in maps), strict=True)


def gentle_pixels(depth: NDArray[np.floating], max_gradient: float) -> NDArray[np.bool_]:
    """Returns where the Sobel gradient of a depth map is not too large: Pixel-Perfect Depth's mask of DIODE.

    The gradient is |g_x| + |g_y|, g the two responses of `scipy.ndimage.sobel`, which are not normalised: a plane that
    rises by s metres per pixel along a row has 8·s. As in `ppd/data/diode.py` of gangweix/pixel-perfect-depth (commit
    427a86f), the map is taken as it is stored, before pixels that are not known are marked: the border of a hole that
    is stored as 0 is steep. A gradient that is NaN is not larger than the limit.

    Args:
        depth: H×W, metres.
        max_gradient: Largest gradient that is kept.

    Returns:
        H×W.

    Raises:
        ImportError: If scipy is not installed.
    """
    ndimage = import_optional("scipy.ndimage", "evaluate", "The mask of steep pixels")
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return ~(np.abs(ndimage.sobel(depth, 0)) + np.abs(ndimage.sobel(depth, 1)) > max_gradient)


def masked_mean(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Means over the valid pixels of each image: (..., H, W) to (...)."""
    return np.where(valid, values, 0).sum(axis=(-2, -1)) / valid.sum(axis=(-2, -1))
