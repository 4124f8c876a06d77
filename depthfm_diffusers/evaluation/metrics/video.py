"""Steadiness of the depth of a clip: the temporal alignment error, and flicker. Both are percentages, 0 is perfect.

Depth maps are aligned to metres with one scale and one shift for the whole clip before; with those of each frame, a
change of scale from frame to frame would not be seen.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .alignment import Alignment, align
from .masks import check_maps

Maps = NDArray[np.floating]


def align_clip(prediction: Maps, truth: Maps, valid: NDArray[np.bool_], space: str) -> Alignment:
    """Aligns all frames of a clip together, with one scale and one shift; see `alignment.align`.

    Args:
        prediction: F×H×W, in the space of the alignment.
        truth: F×H×W, metres.
        valid: F×H×W, boolean.
        space: One of `ALIGNMENT_SPACES`.

    Returns:
        The aligned depth, F×H×W, and the two numbers.
    """
    check_maps(valid, prediction=prediction, truth=truth)
    width = valid.shape[-1]
    aligned = align(prediction.reshape(-1, width), truth.reshape(-1, width), valid.reshape(-1, width), space)
    return Alignment(aligned.depth.reshape(valid.shape), aligned.scale, aligned.shift)


def temporal_alignment_error(
    depth: Maps,
    valid: NDArray[np.bool_],
    camera_to_world: NDArray[np.floating],
    intrinsics: NDArray[np.floating],
) -> float:
    """Returns TAE: how far the depth of each frame is from that of its neighbours, reprojected by the known poses.

    As in Video Depth Anything (arXiv 2501.12375, `benchmark/eval/eval_tae.py`): the points of a frame are moved into
    the camera of the next one and rounded to its pixels, there AbsRel is taken against the depth of that frame, and
    the same backwards; 100 × the mean over all pairs and both ways. Of several points in one pixel the nearest counts
    (there it is the last one written). Surfaces that are hidden in one of two frames count, so that TAE is not 0 for
    true depth.

    Args:
        depth: F×H×W, F at least 2: planar depth in metres, positive where valid, with one scale and shift a clip.
        valid: F×H×W, boolean. Pixels without a valid depth are neither moved nor compared.
        camera_to_world: F×4×4 poses, OpenCV axes (x right, y down, z forward), metres.
        intrinsics: 3×3 for all frames, or F×3×3; pixels, pixel centres at integers.

    Raises:
        ValueError: If shapes do not fit, there are fewer than 2 frames, or no frame shares a pixel with its
            neighbours.
    """
    check_maps(valid, depth=depth)
    if depth.ndim != 3 or len(depth) < 2:
        raise ValueError(f"`depth` must be F×H×W of at least 2 frames, got shape {depth.shape}.")
    if camera_to_world.shape != (len(depth), 4, 4):
        raise ValueError(f"`camera_to_world` must be {len(depth)}×4×4, got shape {camera_to_world.shape}.")
    cameras = np.broadcast_to(intrinsics, (len(depth), 3, 3))
    errors = []
    for first, second in pairwise(range(len(depth))):
        for source, target in ((first, second), (second, first)):
            to_target = np.linalg.inv(camera_to_world[target]) @ camera_to_world[source]
            moved = _reproject(depth[source], valid[source], to_target, cameras[source], cameras[target])
            both = np.isfinite(moved) & valid[target]
            if both.any():
                errors.append(float((np.abs(depth[target] - moved)[both] / depth[target][both]).mean()))
    if not errors:
        raise ValueError("`camera_to_world`: no frame sees a valid point of its neighbours.")
    return 100 * float(np.mean(errors))


def flicker(depth: Maps, truth: Maps, valid: NDArray[np.bool_]) -> float:
    """Returns how much the error of the log depth changes from frame to frame at one pixel.

    100 × the mean of |e_{t+1} - e_t| over the pixels that are valid in both frames, e = ln d - ln d*. Needs no poses.

    Args:
        depth: F×H×W, F at least 2: metres, positive where valid, with one scale and shift a clip.
        truth: F×H×W, metres, positive where valid.
        valid: F×H×W, boolean.

    Raises:
        ValueError: If shapes do not fit, or no pixel is valid in two frames that follow each other.
    """
    check_maps(valid, depth=depth, truth=truth)
    error = np.log(np.where(valid, depth, 1) / np.where(valid, truth, 1), dtype=np.float64)
    both = valid[1:] & valid[:-1]
    if not both.any():
        raise ValueError("`valid` marks no pixel in two frames that follow each other.")
    return 100 * float(np.abs(np.diff(error, axis=0))[both].mean())


def _reproject(
    depth: Maps, valid: NDArray[np.bool_], to_target: Maps, source: Maps, target: Maps
) -> NDArray[np.float64]:
    """Moves the points of a depth map into another camera; returns H×W, NaN where no point falls."""
    height, width = depth.shape
    rows, columns = np.nonzero(valid)
    rays = np.linalg.inv(source) @ np.stack([columns, rows, np.ones(len(rows))])
    points = to_target[:3, :3] @ (rays * depth[rows, columns]) + to_target[:3, 3:]
    points = points[:, points[2] > 0]
    u, v, _ = np.rint(target @ (points / points[2])).astype(np.int64)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    nearest = np.full((height, width), np.inf)
    np.minimum.at(nearest, (v[inside], u[inside]), points[2, inside])
    return np.where(np.isinf(nearest), np.nan, nearest)
