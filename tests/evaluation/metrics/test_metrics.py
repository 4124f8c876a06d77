"""Metrics: golden values, closed forms by hand, batches, masks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers.components import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.evaluation import align, all_metrics, normal_angles, silog

GOLDEN_NAMES = {
    "abs_rel": "abs_relative_difference",
    "sq_rel": "squared_relative_difference",
    "rmse": "rmse_linear",
    "rmse_log": "rmse_log",
    "log10": "log10",
    "delta1": "delta1_acc",
    "delta2": "delta2_acc",
    "delta3": "delta3_acc",
    "i_rmse": "i_rmse",
    "silog": "silog_rmse",
}
CAMERA = np.array([[50.0, 0, 9.5], [0, 50, 7.5], [0, 0, 1]])


@pytest.mark.parametrize(("space", "flip"), [("depth", False), ("disparity", True)])
def test_golden_values(space, flip):
    """Marigold's evaluation code on aligned maps clipped to [1e-3, 40] m; 1e-5 relative."""
    data = np.load(DATA / "metrics.npz")
    golden = json.loads((DATA / "metrics.json").read_text())[space]
    prediction = 1.05 - data["pred"] if flip else data["pred"]
    depth = align(prediction, data["gt"], data["valid"], space, max_depth=40).depth
    values = all_metrics(depth, data["gt"], data["valid"])
    for name, theirs in GOLDEN_NAMES.items():
        assert values[name] == pytest.approx(golden[theirs], rel=1e-5), name


def test_closed_forms():
    truth, depth = np.array([[1.0, 2.0, 4.0]]), np.array([[1.1, 2.0, 6.0]])
    values = all_metrics(depth, truth, truth > 0)
    a, b = math.log(1.1), math.log(1.5)
    expected = {
        "abs_rel": (0.1 + 0 + 0.5) / 3,
        "sq_rel": (0.01 + 0 + 4 / 4) / 3,
        "rmse": math.sqrt((0.01 + 0 + 4) / 3),
        "rmse_log": math.sqrt((a**2 + b**2) / 3),
        "log10": (a + b) / math.log(10) / 3,
        "silog": 100 * math.sqrt((a**2 + b**2) / 3 - ((a + b) / 3) ** 2),
        "i_rmse": math.sqrt(((1 - 1 / 1.1) ** 2 + (1 / 4 - 1 / 6) ** 2) / 3),
        "delta1": 2 / 3,
        "delta2": 1.0,
        "delta3": 1.0,
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-12), name
    assert "normals_mean_deg" not in values


def test_delta_is_strict():
    truth = np.ones((1, 2))
    assert all_metrics(np.array([[1.25, 1.2499]]), truth, truth > 0)["delta1"] == 0.5


def test_perfect_depth():
    truth = np.random.default_rng(0).uniform(1, 9, (16, 20))
    truth[:, 12:] = 5  # away from edges
    values = all_metrics(truth, truth, truth > 0, CAMERA)
    assert {name: float(v) for name, v in values.items()} == pytest.approx(
        dict.fromkeys(values, 0.0) | dict.fromkeys(("delta1", "delta2", "delta3", "boundary_f1"), 1.0), abs=1e-9
    )


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 99))
@settings(deadline=None)
def test_silog_does_not_see_the_scale(scale, seed):
    rng = np.random.default_rng(seed)
    depth, truth = rng.uniform(1, 9, (2, 5, 6))
    valid = truth > 2
    assert silog(depth * scale, truth, valid) == pytest.approx(silog(depth, truth, valid), rel=1e-6)


@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_batches_are_measured_image_by_image_and_nothing_counts_outside_the_mask(seed):
    rng = np.random.default_rng(seed)
    depth, truth = rng.uniform(1, 9, (2, 3, 8, 9))
    valid = rng.random(truth.shape) < 0.8
    together = all_metrics(depth, truth, valid, CAMERA)
    junk = rng.choice([0.0, -1.0, np.nan, np.inf], truth.shape)
    for i in range(3):
        one = all_metrics(
            np.where(valid[i], depth[i], junk[i]), np.where(valid[i], truth[i], junk[i]), valid[i], CAMERA
        )
        for name, value in one.items():
            assert np.ndim(value) == 0
            np.testing.assert_allclose(value, together[name][i], rtol=1e-12, err_msg=name)


def test_normals_of_tilted_planes():
    """Planes z = 4 / (1 - x tan a) around a frontal one are tilted by a: every pixel's angle is a."""
    x = (np.arange(20) - 9.5)[None].repeat(16, 0) / 50
    frontal = np.full((16, 20), 4.0)
    for degrees in (0.0, 10.0, 35.0):
        tilted = 4 / (1 - x * math.tan(math.radians(degrees)))
        mean, median = normal_angles(tilted, frontal, frontal > 0, CAMERA)
        assert mean == pytest.approx(degrees, abs=1e-6)
        assert median == pytest.approx(degrees, abs=1e-6)


def test_normals_next_to_a_hole_do_not_count():
    truth = np.full((16, 20), 4.0)
    depth = truth.copy()
    valid = np.ones_like(truth, dtype=bool)
    valid[8, 8:12] = False
    depth[8, 8:12] = 99
    assert normal_angles(depth, truth, valid, CAMERA) == pytest.approx((0, 0), abs=1e-9)
    only = np.zeros_like(valid)
    only[4, 4] = True
    assert np.isnan(normal_angles(depth, truth, only, CAMERA)).all()


def test_refusals():
    one = np.ones((2, 2))
    with pytest.raises(ValueError, match="`depth` and `valid` must have one shape"):
        all_metrics(one[:1], one, one > 0)
    with pytest.raises(ValueError, match="`depth` must be positive and finite"):
        all_metrics(one * 0, one, one > 0)
    with pytest.raises(ValueError, match="`truth` must be positive and finite"):
        all_metrics(one, one * np.inf, one > 0)
    with pytest.raises(ValueError, match="no pixel"):
        all_metrics(one, one, one > 1)


@given(scale=st.floats(0.1, 10), seed=st.integers(0, 99))
@settings(deadline=None)
def test_how_metrics_change_with_the_unit_of_both_maps(scale, seed):
    rng = np.random.default_rng(seed)
    depth, truth = rng.uniform(1, 9, (2, 8, 9))
    valid = rng.random(truth.shape) < 0.8
    values = all_metrics(depth, truth, valid, CAMERA)
    changed = all_metrics(depth * scale, truth * scale, valid, CAMERA)
    factors = {"rmse": scale, "sq_rel": scale, "i_rmse": 1 / scale}
    for name, value in values.items():
        np.testing.assert_allclose(changed[name], value * factors.get(name, 1), rtol=1e-7, err_msg=name)


def test_silog_keeps_the_digits_of_a_small_variance():
    """Log errors of 1 ± 1e-7: the mean square less the squared mean would have no digit left."""
    truth = np.ones((2, 2))
    depth = np.exp(1 + np.array([[1e-7, -1e-7], [1e-7, -1e-7]]))
    assert silog(depth, truth, truth > 0) == pytest.approx(1e-5, rel=1e-6)
