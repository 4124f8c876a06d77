"""Sparsification and rank correlation: extremes, curves by hand, ties, masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.evaluation import rank_correlation, sparsification_error


def test_curves_by_hand():
    """Errors 1, 2, 3, 6 of mean 3; uncertainty in the opposite order."""
    error = np.array([[1.0, 2.0, 3.0, 6.0]])
    uncertainty = np.array([[4.0, 3.0, 2.0, 1.0]])
    result = sparsification_error(uncertainty, error, error > 0, steps=4)
    assert result.fractions.tolist() == [0, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(result.oracle, np.array([3, 2, 1.5, 1]) / 3)
    np.testing.assert_allclose(result.by_uncertainty, np.array([3, 11 / 3, 4.5, 6]) / 3)
    difference = np.array([0, 5 / 3, 3, 5]) / 3
    assert result.area == pytest.approx(0.25 * (difference.sum() - difference[-1] / 2))
    assert rank_correlation(uncertainty, error, error > 0) == pytest.approx(-1)


@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_the_error_itself_is_the_best_uncertainty(seed):
    rng = np.random.default_rng(seed)
    error, other = rng.exponential(size=(2, 12, 13))
    valid = rng.random(error.shape) < 0.7
    assert sparsification_error(error**2, error, valid).area == pytest.approx(0, abs=1e-12)
    assert sparsification_error(other, error, valid).area >= 0
    assert rank_correlation(error**2, error, valid) == pytest.approx(1)


@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_only_the_order_of_valid_pixels_counts(seed):
    rng = np.random.default_rng(seed)
    uncertainty, error = rng.exponential(size=(2, 3, 9, 8))
    valid = rng.random(error.shape) < 0.7
    area, correlation = (
        sparsification_error(uncertainty, error, valid).area,
        rank_correlation(uncertainty, error, valid),
    )
    assert area.shape == correlation.shape == (3,)
    for i in range(3):
        changed = np.where(valid[i], np.log(uncertainty[i]), np.nan)
        assert sparsification_error(changed, error[i], valid[i]).area == pytest.approx(area[i], rel=1e-12)
        assert rank_correlation(changed, error[i], valid[i]) == pytest.approx(correlation[i], rel=1e-12)


def test_a_constant_uncertainty_says_nothing():
    error = np.arange(100.0).reshape(10, 10)
    flat = sparsification_error(np.zeros_like(error), error, error >= 0)
    np.testing.assert_allclose(flat.by_uncertainty, 1)
    assert np.isnan(rank_correlation(np.zeros_like(error), error, error >= 0))


def test_ties_share_their_rank():
    """Ranks 1.5, 1.5, 3 and 1, 2, 3: Pearson's correlation of these."""
    uncertainty, error = np.array([[5.0, 5.0, 7.0]]), np.array([[1.0, 2.0, 3.0]])
    expected = np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1]
    assert rank_correlation(uncertainty, error, error > 0) == pytest.approx(expected)


def test_no_error_at_all_is_perfect():
    zero = np.zeros((3, 3))
    assert sparsification_error(np.eye(3), zero, zero == 0).area == 0


def test_refusals():
    one = np.ones((2, 2))
    with pytest.raises(ValueError, match="`uncertainty` and `valid` must have one shape"):
        sparsification_error(one[:1], one, one > 0)
    with pytest.raises(ValueError, match="`error` must be at least 0"):
        sparsification_error(one, -one, one > 0)
    with pytest.raises(ValueError, match="`uncertainty` has non-finite"):
        rank_correlation(one * np.nan, one, one > 0)
    with pytest.raises(ValueError, match="`steps` must be at least 2"):
        sparsification_error(one, one, one > 0, steps=1)


@given(number=st.integers(1, 40), steps=st.integers(2, 120), seed=st.integers(0, 99))
@settings(deadline=None)
def test_curves_are_those_of_removing_pixel_after_pixel(number, steps, seed):
    rng = np.random.default_rng(seed)
    uncertainty, error = rng.permutation(number)[None].astype(float), rng.exponential(size=(1, number))
    result = sparsification_error(uncertainty, error, error >= 0, steps)
    for order, curve in ((uncertainty, result.by_uncertainty), (error, result.oracle)):
        ordered = error[0][np.argsort(order[0])]
        expected = [ordered[: number - k * number // steps].mean() / error.mean() for k in range(steps)]
        np.testing.assert_allclose(curve, expected)


def test_ties_cost_what_random_order_does():
    """The mean over all orders of two tied pixels."""
    error = np.array([[1.0, 2.0, 6.0]])
    tied = sparsification_error(np.array([[0.0, 1.0, 1.0]]), error, error > 0, steps=3)
    orders = [sparsification_error(np.array([u]), error, error > 0, steps=3) for u in ([0.0, 1, 2], [0.0, 2, 1])]
    np.testing.assert_allclose(tied.by_uncertainty, np.mean([o.by_uncertainty for o in orders], axis=0))
