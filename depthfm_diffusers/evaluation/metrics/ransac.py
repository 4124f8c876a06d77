"""Alignment of log(depth + 1) by RANSAC, as Pixel-Perfect Depth's evaluation does it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...line_fitting import fit_least_squares
from ...metric import MIN_DEPTH
from ...utils.imports import import_optional
from .alignment import Alignment, check_alignment_maps
from .masks import per_image

Real = TypeVar("Real", bound=np.floating)
# The trials are those of the reference; it does not fix a seed.
MAX_TRIALS = 1000
SEED = 0
# How scale and shift were found, see `align_log_ransac`.
RANSAC, MEAN_RATIO, CONSTANT, UNCHANGED = "ransac", "mean_ratio", "constant", "unchanged"


@dataclass(frozen=True)
class RansacAlignment(Alignment):
    """Predictions brought to metres by RANSAC.

    Attributes:
        fit: How scale and shift were found, shape (...), texts: see `align_log_ransac`.
    """

    fit: NDArray[np.str_]


def align_log_ransac(
    prediction: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> RansacAlignment:
    """Fits s·p + b = log(d + 1) per image by RANSAC over its valid pixels and applies s and b to all pixels.

    This is `ppd/utils/align_depth_func.py` of gangweix/pixel-perfect-depth (commit 427a86f): scikit-learn's
    `RANSACRegressor(max_trials=1000)`, whose other settings are its defaults. A pixel is an inlier if its residual is
    at most the median absolute deviation of log(d + 1) from its median. A trial draws two pixels. Trials end when the
    chance to have drawn two inliers is 99 %, which is after 2 to 20 in most images. Scale and shift are the least
    squares over the inliers of the trial that has most of them. Aligned depth is exp(s·p + b) - 1, clipped from 1e-3 m
    to the largest valid true depth of the image.

    | `fit` | | scale | shift |
    |---|---|---|---|
    | `"ransac"` | RANSAC has found a positive scale | s | b |
    | `"mean_ratio"` | its scale is zero or negative: a map constant or upside down | mean log(d + 1) / mean p | 0 |
    | `"constant"` | the same, but that ratio is not finite | 0 | mean log(d + 1) |
    | `"unchanged"` | RANSAC has found nothing, as of a single pixel | 1 | 0 |

    Two things differ from the reference. The seed of the trials is fixed here, so that the same maps have the same
    scores. And the inliers are found in float32 as there, but the fit to them is computed in float64: scale and shift
    are the same to 1e-6. `"constant"` is not in the reference, whose depth is NaN there.

    Args:
        prediction: (..., H, W), affine in log(depth + 1).
        truth: Metric depth, same shape, metres; positive where valid.
        valid: Boolean, same shape.

    Returns:
        The aligned depth, the parameters, and how they were found.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If shapes differ, an image has no valid pixel, or a valid pixel is not positive or not finite.
    """
    check_alignment_maps(prediction, truth, valid)
    aligned = np.empty(valid.shape)
    fits = []
    for out, p, t, v in per_image(aligned, prediction, truth, valid):
        known = t[v].astype(np.float64)
        scale, shift, fit = _fit(p[v].astype(np.float64), known)
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite depth is clipped or outside the mask
            out[:] = np.clip(np.exp(scale * p.astype(np.float64) + shift) - 1, MIN_DEPTH, known.max())
        fits.append((scale, shift, fit))
    return RansacAlignment(
        aligned, *(np.array(values).reshape(valid.shape[:-2])[()] for values in zip(*fits, strict=True))
    )


def prediction_for_ransac(values: NDArray[Real], form: str) -> NDArray[Real]:
    """Returns what is fitted to log(depth + 1) of a map of a given form.

    The values are taken as they are, as the reference does: an affine map of depth has no logarithm, and a map of log
    depth fits log(depth + 1) best. Of disparity the sign is changed, as RANSAC's scale must be positive.

    Args:
        values: (..., H, W).
        form: One of `choices.PREDICTION_FORMS`.
    """
    return -values if form == "disparity" else values


def require_ransac() -> None:
    """Checks that scikit-learn is there.

    Raises:
        ImportError: If it is not, with the command that installs it.
    """
    import_optional("sklearn.linear_model", "evaluate", "The protocol ppd")


def _fit(p: NDArray[np.float64], d: NDArray[np.float64]) -> tuple[float, float, str]:
    """Fits s·p + b = log(d + 1) (N values each): s, b, and how they were found."""
    with np.errstate(over="ignore"):  # infinite values are no inliers
        inliers = find_inliers(p.astype(np.float32), np.log(d.astype(np.float32) + 1))
    target = np.log(d + 1)
    if inliers is None:
        return 1.0, 0.0, UNCHANGED
    # The estimator of scikit-learn computes the same, but its last digits depend on the number of threads.
    scale, shift = fit_least_squares(p[inliers], target[inliers])
    # Of equal targets, the scale is zero up to a rounding error of either sign.
    if scale > 0 and np.ptp(target[inliers]) > 0:
        return scale, shift, RANSAC
    with np.errstate(divide="ignore", over="ignore"):
        ratio = float(target.mean() / p.mean())
    return (ratio, 0.0, MEAN_RATIO) if np.isfinite(ratio) else (0.0, float(target.mean()), CONSTANT)


def find_inliers(p: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Finds the pixels to which RANSAC fits s·p + b = target.

    Args:
        p: N values.
        target: Likewise.

    Returns:
        N; `None` if RANSAC has found none.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    linear_model = import_optional("sklearn.linear_model", "evaluate", "The protocol ppd")
    regressor = linear_model.RANSACRegressor(max_trials=MAX_TRIALS, random_state=SEED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a score of a single pixel
            regressor.fit(p[:, None], target)
    except ValueError:  # fewer than two pixels, or no consensus in any trial
        return None
    return np.asarray(regressor.inlier_mask_)
