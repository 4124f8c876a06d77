"""Error measures of aligned depth maps over their valid pixels, in float64.

All take maps (..., H, W), one image or a batch, and return one value per image, of shape (...): a scalar for one.
`depth` is aligned depth in metres, positive; `truth` the true depth in metres, positive where `valid` (boolean). Maps
of different shapes, and an image without a valid pixel, raise `ValueError`. Formulas are those of Eigen et al. 2014
(arXiv 1406.2283), and of Marigold's evaluation where they differ (`silog`, `inverse_rmse`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...geometry import depth_to_normals
from .boundary import boundary_f1
from .edges import edge_errors
from .masks import check_maps, masked_mean, per_image

Maps = NDArray[np.floating]
Mask = NDArray[np.bool_]
Values = NDArray[np.float64]


def absolute_relative_error(depth: Maps, truth: Maps, valid: Mask) -> Values:
    """AbsRel: mean of |d - d*| / d*; 0 is perfect."""
    d, t = _checked(depth, truth, valid)
    return masked_mean(np.abs(d - t) / t, valid)


def squared_relative_error(depth: Maps, truth: Maps, valid: Mask) -> Values:
    """SqRel: mean of (d - d*)² / d*, metres; 0 is perfect."""
    d, t = _checked(depth, truth, valid)
    return masked_mean((d - t) ** 2 / t, valid)


def rmse(depth: Maps, truth: Maps, valid: Mask) -> Values:
    """RMSE: root of the mean of (d - d*)², metres; 0 is perfect."""
    d, t = _checked(depth, truth, valid)
    return np.sqrt(masked_mean((d - t) ** 2, valid))


def rmse_log(depth: Maps, truth: Maps, valid: Mask) -> Values:
    """RMSE-log: root of the mean of (ln d - ln d*)²; 0 is perfect."""
    d, t = _checked(depth, truth, valid)
    return np.sqrt(masked_mean(np.log(d / t) ** 2, valid))


def log10_error(depth: Maps, truth: Maps, valid: Mask) -> Values:
    """log10: mean of |log10 d - log10 d*|; 0 is perfect."""
    d, t = _checked(depth, truth, valid)
    return masked_mean(np.abs(np.log10(d / t)), valid)


def silog(depth: Maps, truth: Maps, valid: Mask) -> Values:
    """SILog: 100 times the standard deviation of ln d - ln d*, which no scale of d changes; 0 is perfect."""
    d, t = _checked(depth, truth, valid)
    difference = np.log(d / t)
    # Not the mean square less the squared mean: that loses every digit of a small variance.
    mean = np.expand_dims(masked_mean(difference, valid), (-2, -1))
    return 100 * np.sqrt(masked_mean((difference - mean) ** 2, valid))


def inverse_rmse(depth: Maps, truth: Maps, valid: Mask) -> Values:
    """iRMSE: root of the mean of (1/d - 1/d*)², 1/m; 0 is perfect."""
    d, t = _checked(depth, truth, valid)
    return np.sqrt(masked_mean((1 / d - 1 / t) ** 2, valid))


def delta_accuracy(depth: Maps, truth: Maps, valid: Mask, power: int = 1) -> Values:
    """δ: share of pixels with max(d / d*, d* / d) < 1.25^`power` (1, 2 or 3); 1 is perfect."""
    d, t = _checked(depth, truth, valid)
    return masked_mean((np.maximum(d / t, t / d) < 1.25**power).astype(np.float64), valid)


def normal_angles(depth: Maps, truth: Maps, valid: Mask, intrinsics: NDArray[np.floating]) -> tuple[Values, Values]:
    """Mean and median angle between the surface normals of `depth` and of `truth`, degrees in [0, 180]; 0 is perfect.

    Only pixels count whose 3×3 neighbourhood within the image is valid, as a normal depends on the depth of the
    neighbours. NaN for an image that has none.

    Args:
        depth: (..., H, W), H and W at least 2.
        truth: Likewise.
        valid: Likewise.
        intrinsics: 3×3, shared by the batch, or (..., 3, 3); pixels, see `geometry.depth_to_normals`.
    """
    d, t = _checked(depth, truth, valid)
    d = np.where(valid, d, 1)
    cameras = np.broadcast_to(intrinsics, (*valid.shape[:-2], 3, 3)).reshape(-1, 3, 3)
    results = []
    for (di, ti, vi), camera in zip(per_image(d, t, valid), cameras, strict=True):
        inner = _erode(vi)
        if not inner.any():
            results.append((np.nan, np.nan))
            continue
        maps = torch.from_numpy(np.stack([di, ti]))[:, None]
        normals = depth_to_normals(maps, torch.from_numpy(np.array(camera, dtype=np.float64)))
        first, second = normals.numpy()
        # atan2 is accurate for small angles, where arccos of the scalar product is not.
        sine = np.linalg.norm(np.cross(first, second, axis=0), axis=0)
        angles = np.degrees(np.arctan2(sine, (first * second).sum(0)))[inner]
        results.append((angles.mean(), np.median(angles)))
    means, medians = (np.array([r[i] for r in results]).reshape(valid.shape[:-2])[()] for i in (0, 1))
    return means, medians


def all_metrics(
    depth: Maps, truth: Maps, valid: Mask, intrinsics: NDArray[np.floating] | None = None
) -> dict[str, Values]:
    """Every metric by its short name.

    Returns:
        `abs_rel, sq_rel, rmse, rmse_log, log10, silog, i_rmse, delta1, delta2, delta3, boundary_f1`; with `intrinsics`
        also `normals_mean_deg` and `normals_median_deg`; then those of `edges.edge_errors`. Values are NaN where a
        metric does not exist: `boundary_f1` of an image whose truth has no occlusion edge, the normals' of one without
        a valid 3×3 neighbourhood.
    """
    values = {
        "abs_rel": absolute_relative_error(depth, truth, valid),
        "sq_rel": squared_relative_error(depth, truth, valid),
        "rmse": rmse(depth, truth, valid),
        "rmse_log": rmse_log(depth, truth, valid),
        "log10": log10_error(depth, truth, valid),
        "silog": silog(depth, truth, valid),
        "i_rmse": inverse_rmse(depth, truth, valid),
        **{f"delta{power}": delta_accuracy(depth, truth, valid, power) for power in (1, 2, 3)},
        "boundary_f1": boundary_f1(depth, truth, valid),
    }
    if intrinsics is not None:
        angles = normal_angles(depth, truth, valid, intrinsics)
        values["normals_mean_deg"], values["normals_median_deg"] = angles
    return values | edge_errors(depth, truth, valid)


def _checked(depth: Maps, truth: Maps, valid: Mask) -> tuple[Values, Values]:
    """Checks maps; returns them in float64, with 1 where `valid` is false: no formula divides by zero there."""
    check_maps(valid, depth=depth, truth=truth)
    d, t = (np.where(valid, m, 1).astype(np.float64) for m in (depth, truth))
    for name, values in (("depth", d), ("truth", t)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"`{name}` must be positive and finite wherever `valid` is true.")
    return d, t


def _erode(valid: Mask) -> Mask:
    """Pixels (H×W) whose 3×3 neighbourhood within the image is valid."""
    padded = np.pad(valid, 1, constant_values=True)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).all(axis=(-2, -1)))
