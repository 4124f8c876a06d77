"""Lines through points: exact, weighted, and with wrong points among them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.line_fitting import fit_least_squares, fit_robust_line


def test_least_squares_is_that_of_numpy():
    p, target = np.random.default_rng(0).normal(size=(2, 50))
    weights = np.random.default_rng(1).uniform(0, 1, 50)
    assert fit_least_squares(p, target) == pytest.approx(np.polyfit(p, target, 1))
    assert fit_least_squares(p, target, weights) == pytest.approx(np.polyfit(p, target, 1, w=np.sqrt(weights)))


def test_points_of_weight_zero_do_not_count():
    p, target = np.array([0.0, 1, 2, 3]), np.array([1.0, 3, 5, 100])
    assert fit_least_squares(p, target, np.array([1.0, 1, 1, 0])) == pytest.approx((2, 1))


def test_constant_values_have_no_scale():
    assert fit_least_squares(np.full(3, 0.1), np.array([1.0, 2, 3])) == (0.0, 2.0)


@given(count=st.integers(6, 200), share=st.floats(0, 0.4), scale=st.floats(0.1, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_wrong_points_do_not_move_the_line(count, share, scale, seed):
    draw = np.random.default_rng(seed)
    p = draw.uniform(-1, 1, count)
    target = scale * p + 0.7
    wrong = np.arange(count) < int(share * (count - 2))
    target[wrong] += draw.choice([-1, 1], wrong.sum()) * draw.uniform(2, 9, wrong.sum())
    line = fit_robust_line(p, target, tolerance=0.05)
    assert (line.scale, line.shift) == pytest.approx((scale, 0.7), abs=1e-6)
    np.testing.assert_array_equal(line.inliers, ~wrong)


def test_of_gaussian_noise_it_is_about_least_squares():
    draw = np.random.default_rng(3)
    p = draw.uniform(-1, 1, 400)
    target = 2 * p - 1 + 0.1 * draw.normal(size=400)
    line = fit_robust_line(p, target, tolerance=0.01)
    assert (line.scale, line.shift) == pytest.approx(fit_least_squares(p, target), abs=0.005)
    assert line.inliers.mean() > 0.99


def test_points_within_the_tolerance_are_kept():
    target = np.array([0.0, 1, 2, 3, 4.04])
    assert fit_robust_line(np.arange(5.0), target, tolerance=0.1).inliers.all()
    assert not fit_robust_line(np.arange(5.0), target, tolerance=0.01).inliers.all()


@pytest.mark.parametrize("count", [2, 3, 10, 5000])
def test_the_same_points_give_the_same_line(count):
    p, target = np.random.default_rng(count).normal(size=(2, count))
    first, second = (fit_robust_line(p, target + p, tolerance=0.05) for _ in range(2))
    assert (first.scale, first.shift) == (second.scale, second.shift)


def test_a_falling_line_is_that_of_least_squares():
    line = fit_robust_line(np.arange(6.0), -np.arange(6.0), tolerance=0.05)
    assert (line.scale, line.shift) == pytest.approx((-1, 0))
    assert line.inliers.all()
