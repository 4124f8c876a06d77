"""Calibration of a spread to the expected error."""

from __future__ import annotations

import numpy as np
import pytest

from depthfm_diffusers.uncertainty import UncertaintyCalibration, fit_calibration


@pytest.mark.parametrize(("factor", "exponent"), [(2.0, 1.0), (0.5, 0.4)])
def test_a_power_law_is_found(factor, exponent):
    draw = np.random.default_rng(0)
    spread = np.exp(draw.uniform(-6, -1, 20000))
    error = factor * spread**exponent * draw.exponential(size=20000)
    found = fit_calibration(spread, error)
    assert (found.factor, found.exponent) == pytest.approx((factor, exponent), rel=0.05)
    assert found.apply(spread).mean() == pytest.approx(error.mean(), rel=1e-5)


def test_a_spread_that_says_nothing_gets_the_mean_error():
    draw = np.random.default_rng(0)
    spread = draw.uniform(0, 1, 1000)
    found = fit_calibration(spread, 1 - 0.9 * spread)
    assert found.exponent == 0
    np.testing.assert_allclose(found.apply(spread), (1 - 0.9 * spread).mean(), rtol=1e-5)


def test_no_spread_is_finite():
    assert np.isfinite(UncertaintyCalibration(2.0, 0.5).apply(np.zeros((2, 3), dtype=np.float32))).all()
    assert fit_calibration(np.zeros(30), np.ones(30)).apply(np.zeros(1)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("spread", "error", "message"),
    [
        (np.ones(30), np.ones(29), "one length"),
        (np.ones(3), np.ones(3), "at least 20"),
        (np.full(30, np.nan), np.ones(30), "`spread` must be finite"),
        (np.ones(30), -np.ones(30), "`error` must be finite and at least 0"),
        (np.ones(30), np.zeros(30), "nothing to calibrate"),
    ],
)
def test_what_is_refused(spread, error, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(spread, error)
