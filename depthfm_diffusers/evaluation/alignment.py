"""Least-squares alignment of an affine-invariant prediction to metric depth, in a named space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIGNMENT_SPACES = ("depth", "log")
MIN_DEPTH = 1e-3


@dataclass(frozen=True)
class Alignment:
    """A prediction brought to metres.

    Attributes:
        depth: Aligned depth, metres, float64, clipped from below at 1e-3 m.
        scale: Factor applied to the prediction, in the space of the alignment.
        shift: Offset added after it.
    """

    depth: NDArray[np.float64]
    scale: float
    shift: float


def align(
    prediction: NDArray[np.floating], truth: NDArray[np.floating], valid: NDArray[np.bool_], space: str
) -> Alignment:
    """Fits scale and shift by least squares over the valid pixels and applies them.

    Args:
        prediction: Any shape. For `space="depth"` proportional to depth up to an offset (the pipeline's `prediction`);
            for `space="log"` proportional to log depth up to an offset (the pipeline's `log_depth`).
        truth: Metric depth, same shape, metres; positive where valid.
        valid: Boolean, same shape.
        space: `"depth"`: d = s·p + b. `"log"`: log d = s·p + b.

    Returns:
        The aligned depth in metres for every pixel, and the two parameters. A prediction that is constant over the
        valid pixels gets scale 0 and the best constant.

    Raises:
        ValueError: If shapes differ, no pixel is valid, a valid pixel is not positive or not finite, or `space` is
            unknown.
    """
    if space not in ALIGNMENT_SPACES:
        raise ValueError(f"`space` must be one of {ALIGNMENT_SPACES}, got {space!r}.")
    if not prediction.shape == truth.shape == valid.shape:
        raise ValueError(
            f"`prediction`, `truth` and `valid` must have one shape, got {prediction.shape}, {truth.shape}, "
            f"{valid.shape}."
        )
    if not valid.any():
        raise ValueError("`valid` marks no pixel: there is nothing to align to.")
    p = prediction[valid].astype(np.float64)
    d = truth[valid].astype(np.float64)
    if not np.isfinite(p).all():
        raise ValueError("`prediction` has non-finite values among the valid pixels.")
    if not (np.isfinite(d).all() and (d > 0).all()):
        raise ValueError("`truth` must be positive and finite wherever `valid` is true.")
    target = d if space == "depth" else np.log(d)
    centred = p - p.mean()
    variance = np.dot(centred, centred)
    scale = float(np.dot(centred, target) / variance) if variance > 0 else 0.0
    shift = float(target.mean() - scale * p.mean())
    aligned = scale * prediction.astype(np.float64) + shift
    depth = aligned if space == "depth" else np.exp(aligned)
    return Alignment(np.maximum(depth, MIN_DEPTH), scale, shift)
