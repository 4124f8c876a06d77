"""Depth maps and normals as pictures: in colours, or as 16-bit grey PNG."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..utils.files import atomic_write

UINT16_MAX = 65535
PIXELS_AT_ONCE = 2**20


def colorize_depth(depth: np.ndarray, colormap: str = "Spectral") -> np.ndarray:
    """Colours a depth map for looking at.

    Args:
        depth: H×W or H×W×1 floats in [0, 1], 0 near and 1 far.
        colormap: Name of a matplotlib colour map; its lower end is for near pixels. With the default, near is red
            and far is blue.

    Returns:
        H×W×3 `uint8`, sRGB.

    Raises:
        ValueError: If `depth` has another shape, is not finite or leaves [0, 1], or if matplotlib has no `colormap`.
    """
    colours = _colormap(colormap)
    return _by_rows(_checked(depth), lambda rows: (colours(rows)[..., :3] * 255).round().astype(np.uint8))


def check_colormap(colormap: str) -> None:
    """Checks that matplotlib has a colour map; raises a `ValueError` that names some if it has none of that name."""
    _colormap(colormap)


def depth_to_uint16(depth: np.ndarray) -> np.ndarray:
    """Quantises a depth map to 16 bits: 0 is near, 65535 is far; `value / 65535` undoes it to within 1/131070.

    Args:
        depth: H×W or H×W×1 floats in [0, 1].

    Returns:
        H×W `uint16`.

    Raises:
        ValueError: If `depth` has another shape, is not finite or leaves [0, 1].
    """
    return _by_rows(_checked(depth), lambda rows: (rows.astype(np.float64) * UINT16_MAX).round().astype(np.uint16))


def save_image(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes a PNG: H×W `uint16` as 16-bit grey, H×W×3 `uint8` as RGB.

    Args:
        path: The file to write; PNG whatever its suffix.
        array: The picture.
    """
    Image.fromarray(np.ascontiguousarray(array)).save(path, format="PNG")


def metric_depth_scale(depth: np.ndarray) -> float:
    """Returns the unit in which a metric depth map fits into 16 bits: 1 mm up to 65.535 m, else 1 cm, 10 cm, ...

    Args:
        depth: H×W, metres; what is not positive and finite does not count.

    Returns:
        Metres per step.
    """
    known = depth[np.isfinite(depth) & (depth > 0)]
    farthest = float(known.max()) if known.size else 0.0
    scale = 0.001
    while farthest > UINT16_MAX * scale:
        scale = round(scale * 10, 3)
    return scale


def save_metric_depth(path: str | os.PathLike[str], depth: np.ndarray) -> float:
    """Writes metric depth as a 16-bit grey PNG, with its scale in the text chunk `depth_scale`.

    Args:
        path: The file to write; PNG whatever its suffix.
        depth: H×W, metres; pixels that are 0, negative or not finite are written as 0. Positive depth is at least 1.

    Returns:
        The scale, `metric_depth_scale`: metres = value × scale.

    Raises:
        ValueError: If `depth` is not one map of floats.
    """
    if depth.ndim != 2 or depth.size == 0 or not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(f"`depth` must be one map of floats, H×W, got {depth.dtype} of shape {depth.shape}.")
    scale = metric_depth_scale(depth)
    known = np.isfinite(depth) & (depth > 0)
    values = np.where(known, depth, 0).astype(np.float64) / scale
    steps = np.where(known, np.clip(np.rint(values), 1, UINT16_MAX), 0).astype(np.uint16)
    text = PngInfo()
    text.add_text("depth_scale", f"{scale:g}")
    text.add_text("depth_unit", "metre")
    with atomic_write(path) as temporary:
        Image.fromarray(steps).save(temporary, format="PNG", pnginfo=text)
    return scale


def normals_picture(normals: np.ndarray) -> np.ndarray:
    """Colours normals as normal maps are coloured: red to the right, green up, blue towards the camera.

    Args:
        normals: H×W×3 in [-1, 1], OpenCV camera axes. Zero is mid-grey.

    Returns:
        H×W×3 `uint8`.
    """
    return ((normals * (1, -1, -1) + 1) * 127.5).round().astype(np.uint8)


def _by_rows(depth: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Converts some rows at a time: in float64, colours take 32 bytes per pixel."""
    rows = max(1, PIXELS_AT_ONCE // depth.shape[1])
    return np.concatenate([convert(depth[start : start + rows]) for start in range(0, len(depth), rows)])


def _colormap(name: str) -> Any:
    import matplotlib

    if name not in matplotlib.colormaps:
        raise ValueError(
            f"`colormap`: matplotlib has none called {name!r}; try 'Spectral', 'viridis', 'magma', 'turbo' or 'gray'."
        )
    return matplotlib.colormaps[name]


def _checked(depth: np.ndarray) -> np.ndarray:
    depth = np.asarray(depth)
    if depth.ndim == 3 and depth.shape[-1] == 1:
        depth = depth[..., 0]
    if depth.ndim != 2 or depth.size == 0:
        raise ValueError(f"`depth` must be one map, H×W or H×W×1 and not empty, got shape {depth.shape}.")
    if not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(f"`depth` must hold floats in [0, 1], got {depth.dtype}.")
    if not np.isfinite(depth).all():
        raise ValueError("`depth` has NaN or infinite values.")
    if depth.min() < 0 or depth.max() > 1:
        raise ValueError(f"`depth` must lie in [0, 1], got values from {depth.min():g} to {depth.max():g}.")
    return depth
