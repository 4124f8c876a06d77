"""Depth and normals as OpenEXR, with the channel names that compositors read."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..utils.files import atomic_write
from ..utils.imports import import_optional

EXTRA = "exr"


def check_exr_packages() -> None:
    """Checks that the package for OpenEXR is installed.

    Raises:
        ImportError: If it is not, with the command that installs it.
    """
    _openexr()


def save_exr(
    path: str | os.PathLike[str], depth: np.ndarray, normals: np.ndarray | None = None, comments: str = ""
) -> None:
    """Writes depth, and normals if there are any, as a single-part OpenEXR file: 32-bit floats, ZIP compression.

    Channel `Z` is the distance along the optical axis; `N.X`, `N.Y` and `N.Z` are the normals with x to the right, y
    up and z towards the camera.

    Args:
        path: The file to write; OpenEXR whatever its suffix.
        depth: H×W floats.
        normals: H×W×3 floats in OpenCV camera axes, as `edge_aware_normals` returns them; `None`: no normals.
        comments: For the attribute `comments`, such as the unit.

    Raises:
        ImportError: If OpenEXR is not installed.
        ValueError: If a shape does not fit.
    """
    openexr = _openexr()
    if depth.ndim != 2 or depth.size == 0:
        raise ValueError(f"`depth` must be one map, H×W, got shape {depth.shape}.")
    channels: dict[str, np.ndarray] = {"Z": np.ascontiguousarray(depth, dtype=np.float32)}
    if normals is not None:
        if normals.shape != (*depth.shape, 3):
            raise ValueError(f"`normals` must be of shape {(*depth.shape, 3)}, got {normals.shape}.")
        for index, (axis, sign) in enumerate((("X", 1), ("Y", -1), ("Z", -1))):
            channels[f"N.{axis}"] = np.ascontiguousarray(sign * normals[..., index], dtype=np.float32)
    header: dict[str, Any] = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    if comments:
        header["comments"] = comments
    with atomic_write(path) as temporary:
        openexr.File(header, channels).write(str(temporary))


def _openexr() -> Any:
    return import_optional("OpenEXR", EXTRA, "Writing OpenEXR files")
