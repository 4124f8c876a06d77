"""Calibration of an uncertainty: from the spread of predictions to the error that is to be expected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .line_fitting import fit_least_squares

# Pixels are averaged in bins of equal number before the fit: the mean error is wanted, and the logarithm of a single
# pixel's error says little of it.
BINS = 20
# A spread below this, in units of log depth, is rounding.
MIN_SPREAD = 1e-6


@dataclass(frozen=True)
class UncertaintyCalibration:
    """What is to be expected of |d - d*| / d*, given the spread of predictions: factor · spread ** exponent.

    It holds for the model, the method and the kind of images that it was fitted on.

    Attributes:
        factor: Expected error at a spread of 1.
        exponent: At least 0; 1 if the error is proportional to the spread, 0 if the spread says nothing.
    """

    factor: float
    exponent: float

    def apply(self, spread: NDArray[np.floating]) -> NDArray[np.float32]:
        """Returns the expected absolute relative error of each pixel; `spread` is of any shape, as in the fit."""
        return (self.factor * np.maximum(spread, MIN_SPREAD).astype(np.float64) ** self.exponent).astype(np.float32)


def fit_calibration(spread: NDArray[np.floating], error: NDArray[np.floating]) -> UncertaintyCalibration:
    """Fits a calibration to pixels with known depth.

    A straight line between the logarithms of mean spread and mean error of 20 bins; then the factor is set so that
    the mean of the expected errors is that of the errors.

    Args:
        spread: N values, at least 0, such as `DepthFMOutput.uncertainty` at pixels with known depth.
        error: N absolute relative errors, |d - d*| / d*, after alignment.

    Raises:
        ValueError: If the shapes differ, there are fewer than 20 values, a value is negative or not finite, or there
            is no error at all.
    """
    if spread.shape != error.shape or spread.ndim != 1 or len(spread) < BINS:
        raise ValueError(
            f"`spread` and `error` must have one length of at least {BINS}, got shapes {spread.shape}, {error.shape}."
        )
    for name, values in (("spread", spread), ("error", error)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"`{name}` must be finite and at least 0.")
    if not error.any():
        raise ValueError("`error` is 0 everywhere: there is nothing to calibrate.")
    x, e = np.maximum(spread, MIN_SPREAD).astype(np.float64), error.astype(np.float64)
    bins = np.array_split(np.argsort(x, kind="stable"), BINS)
    log_spread, log_error = (np.log([max(values[i].mean(), MIN_SPREAD) for i in bins]) for values in (x, e))
    exponent = max(0.0, fit_least_squares(log_spread, log_error)[0])
    return UncertaintyCalibration(float(e.mean() / np.mean(x**exponent)), exponent)
