"""Alignment and metrics: the golden values, closed forms, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st

from depthfm_diffusers.evaluation import absolute_relative_error, align, delta_accuracy


def test_golden_values():
    """Marigold's evaluation code, aligned in depth, clipped to [1e-3, 40] m; 1e-5 relative."""
    data = np.load(DATA / "metrics.npz")
    golden = json.loads((DATA / "metrics.json").read_text())["depth"]
    alignment = align(data["pred"], data["gt"], data["valid"], "depth")
    assert alignment.scale == pytest.approx(golden["scale"], rel=1e-5)
    assert alignment.shift == pytest.approx(golden["shift"], rel=1e-5)
    depth = np.minimum(alignment.depth, 40)
    scores = {
        "abs_relative_difference": absolute_relative_error(depth, data["gt"], data["valid"]),
        **{f"delta{n}_acc": delta_accuracy(depth, data["gt"], data["valid"], n) for n in (1, 2, 3)},
    }
    for name, value in scores.items():
        assert value == pytest.approx(golden[name], rel=1e-5), name


@given(st.floats(0.1, 10), st.floats(-3, 3), st.sampled_from(["depth", "log"]), st.integers(0, 99))
def test_affine_predictions_align_exactly(scale, shift, space, seed):
    truth = np.random.default_rng(seed).uniform(0.5, 20, (6, 7))
    valid = np.ones_like(truth, dtype=bool)
    target = truth if space == "depth" else np.log(truth)
    aligned = align((target - shift) / scale, truth, valid, space)
    np.testing.assert_allclose(aligned.depth, truth, rtol=1e-6)
    assert aligned.scale == pytest.approx(scale, rel=1e-6)
    assert aligned.shift == pytest.approx(shift, abs=1e-5)


def test_constant_prediction_gets_the_mean():
    truth = np.array([[1.0, 3.0]])
    aligned = align(np.full((1, 2), 7.0), truth, truth > 0, "depth")
    assert aligned.scale == 0
    assert aligned.depth.tolist() == [[2.0, 2.0]]


def test_invalid_pixels_do_not_count_and_depth_is_clipped():
    truth = np.array([1.0, 2.0, 0.0])
    valid = truth > 0
    aligned = align(np.array([1.0, 2.0, -50.0]), truth, valid, "depth")
    assert aligned.depth[2] == 1e-3
    assert absolute_relative_error(aligned.depth, truth, valid) == pytest.approx(0, abs=1e-12)


def test_closed_forms():
    truth, depth = np.array([1.0, 2.0, 4.0]), np.array([1.1, 2.0, 6.0])
    valid = truth > 0
    assert absolute_relative_error(depth, truth, valid) == pytest.approx((0.1 + 0 + 0.5) / 3)
    assert delta_accuracy(depth, truth, valid) == pytest.approx(2 / 3)
    assert delta_accuracy(depth, truth, valid, power=2) == 1.0


def test_refusals():
    one = np.ones((2, 2))
    yes = np.ones((2, 2), dtype=bool)
    with pytest.raises(ValueError, match="`space` must be one of"):
        align(one, one, yes, "metric")
    with pytest.raises(ValueError, match="one shape"):
        align(one, one[:1], yes, "depth")
    with pytest.raises(ValueError, match="no pixel"):
        align(one, one, ~yes, "depth")
    with pytest.raises(ValueError, match="`truth` must be positive"):
        align(one, one * 0, yes, "depth")
    with pytest.raises(ValueError, match="`prediction` has non-finite"):
        align(one * np.nan, one, yes, "depth")
    with pytest.raises(ValueError, match="no pixel"):
        absolute_relative_error(one, one, ~yes)
