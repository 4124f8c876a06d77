"""Alignment of an affine-invariant prediction to metric depth by least squares, in a named space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...image_processing import depth_from_log_depth
from ...line_fitting import fit_least_squares
from ...metric import MIN_DEPTH, depth_from_space, depth_to_space
from ..choices import ALIGNMENT_SPACES, LOG_PLUS_ONE
from .masks import check_maps, per_image

# Images with fewer valid pixels are not scored: scale and shift fit two pixels exactly, whatever the prediction is.
MIN_VALID_PIXELS = 20


@dataclass(frozen=True)
class Alignment:
    """Predictions brought to metres.

    Attributes:
        depth: Aligned depth, (..., H, W), metres, float64, within the limits that `align` names.
        scale: Factor applied to the prediction, in the space of the alignment; shape (...), a scalar for one image. A
            negative one swaps near and far: the prediction is upside down.
        shift: Offset added after it; likewise.
    """

    depth: NDArray[np.float64]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


def align(
    prediction: NDArray[np.floating],
    truth: NDArray[np.floating],
    valid: NDArray[np.bool_],
    space: str,
    max_depth: float | None = None,
) -> Alignment:
    """Fits a scale and a shift per image over its valid pixels and applies them to all pixels.

    | `space` | the prediction is | fitted |
    |---|---|---|
    | `"none"` | depth in metres | nothing: it is only clipped |
    | `"depth"` | affine in depth | s·p + b = d |
    | `"log"` | affine in log depth | s·p + b = log d |
    | `"disparity"` | affine in inverse depth | s·p + b = 1/d |

    The aligned disparity is clipped from below at 1e-3 1/m; aligned depth is clipped to [1e-3 m, `max_depth`].

    Args:
        prediction: (..., H, W); see `prediction_in_space` for the form of a pipeline's output in each space.
        truth: Metric depth, same shape, metres; positive where valid.
        valid: Boolean, same shape.
        space: One of `ALIGNMENT_SPACES`.
        max_depth: Metres; `None` for no limit.

    Returns:
        The aligned depth and the parameters. A prediction that is constant over the valid pixels gets scale 0 and the
        best constant.

    Raises:
        ValueError: If shapes differ, an image has no valid pixel, a valid pixel is not positive or not finite, or
            `space` is unknown.
    """
    if space not in ALIGNMENT_SPACES:
        raise ValueError(f"`space` must be one of {ALIGNMENT_SPACES}, got {space!r}.")
    if max_depth is not None and not max_depth > MIN_DEPTH:
        raise ValueError(f"`max_depth` must be more than {MIN_DEPTH} m or None, got {max_depth}.")
    check_alignment_maps(prediction, truth, valid)
    images = per_image(prediction, truth, valid)
    fits = [_fit(p[v].astype(np.float64), t[v].astype(np.float64), space) for p, t, v in images]
    scale, shift = (np.array([fit[i] for fit in fits]).reshape(valid.shape[:-2]) for i in (0, 1))
    axes = tuple(range(scale.ndim, valid.ndim))
    with np.errstate(over="ignore", invalid="ignore"):  # values outside the mask may be infinite
        aligned = np.expand_dims(scale, axes) * prediction.astype(np.float64) + np.expand_dims(shift, axes)
    depth = depth_from_space(aligned, space)
    return Alignment(np.clip(depth, MIN_DEPTH, max_depth), scale[()], shift[()])


def check_alignment_maps(
    prediction: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_]
) -> None:
    """Checks maps (..., H, W) that are to be aligned.

    Raises:
        ValueError: If shapes differ, an image has no valid pixel, or a valid pixel is not positive or not finite.
    """
    check_maps(valid, prediction=prediction, truth=truth)
    if not np.isfinite(prediction[valid]).all():
        raise ValueError("`prediction` has non-finite values among the valid pixels.")
    known = truth[valid]
    if not (np.isfinite(known).all() and (known > 0).all()):
        raise ValueError("`truth` must be positive and finite wherever `valid` is true.")


def prediction_in_space(log_depth: NDArray[np.floating], space: str) -> NDArray[np.floating]:
    """Returns the form of a pipeline's output that is aligned in a space.

    Args:
        log_depth: (..., H, W), the pipeline's raw log depth, affine-invariant.
        space: One of `ALIGNMENT_SPACES`, or `LOG_PLUS_ONE`, the space of `ransac.align_log_ransac`.

    Returns:
        (..., H, W). `"depth"`: the output convention, exp and then per-image min-max to [0, 1] (0 for a map that is
        constant up to rounding), as `DepthFMOutput.prediction` is; `"log"` and `LOG_PLUS_ONE`: the log depth;
        `"disparity"`: exp(-log depth) and `"none"`: exp(log depth), float64.

    Raises:
        ValueError: If `space` is unknown.
    """
    if space in ("log", LOG_PLUS_ONE):
        return log_depth
    if space not in ALIGNMENT_SPACES:
        raise ValueError(f"`space` must be one of {ALIGNMENT_SPACES}, got {space!r}.")
    if space == "depth":
        return depth_from_log_depth(torch.from_numpy(np.ascontiguousarray(log_depth))).numpy()
    # In float32 the exponential of 89 is infinite.
    return np.exp((-1 if space == "disparity" else 1) * log_depth.astype(np.float64))


def _fit(p: NDArray[np.float64], d: NDArray[np.float64], space: str) -> tuple[float, float]:
    if space == "none":
        return 1.0, 0.0
    return fit_least_squares(p, depth_to_space(d, space))
