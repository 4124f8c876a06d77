"""Alignment: golden values, exact recovery, limits, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.components import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.evaluation import align, prediction_in_space
from depthfm_diffusers.image_processing import depth_from_log_depth

INTO = {"depth": lambda d: d, "log": np.log, "disparity": lambda d: 1 / d}

spaces = st.sampled_from(sorted(INTO))
seeds = st.integers(0, 99)


@pytest.mark.parametrize(("space", "flip"), [("depth", False), ("disparity", True)])
def test_golden_parameters(space, flip):
    """Marigold's evaluation code; 1e-5 relative."""
    data = np.load(DATA / "metrics.npz")
    golden = json.loads((DATA / "metrics.json").read_text())[space]
    prediction = 1.05 - data["pred"] if flip else data["pred"]
    alignment = align(prediction, data["gt"], data["valid"], space, max_depth=40)
    assert alignment.scale == pytest.approx(golden["scale"], rel=1e-5)
    assert alignment.shift == pytest.approx(golden["shift"], rel=1e-5)
    assert alignment.depth.max() <= 40


@given(scale=st.floats(0.1, 10), shift=st.floats(-3, 3), space=spaces, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_affine_predictions_align_exactly(scale, shift, space, seed):
    truth = np.random.default_rng(seed).uniform(0.5, 20, (6, 7))
    valid = np.ones_like(truth, dtype=bool)
    aligned = align((INTO[space](truth) - shift) / scale, truth, valid, space)
    np.testing.assert_allclose(aligned.depth, truth, rtol=1e-6)
    assert aligned.scale == pytest.approx(scale, rel=1e-6)
    assert aligned.shift == pytest.approx(shift, abs=1e-5)


def test_constant_prediction_gets_the_best_constant():
    truth = np.array([[1.0, 3.0, 3.0, 4.0, 9.0]])
    aligned = align(np.full((1, 5), 7.0), truth, truth > 0, "depth")
    assert aligned.scale == 0
    assert aligned.depth.tolist() == [[4.0] * 5]


def test_invalid_pixels_do_not_count_and_depth_is_clipped():
    truth = np.array([[1.0, 2.0, 0.0, 0.0]])
    aligned = align(np.array([[1.0, 2.0, -50.0, 99.0]]), truth, truth > 0, "depth", max_depth=10)
    assert aligned.depth.tolist() == [[1.0, 2.0, 1e-3, 10.0]]


def test_disparity_is_clipped_before_it_is_inverted():
    truth = np.array([[1.0, 2.0, 0.0]])
    aligned = align(np.array([[1.0, 0.5, -3.0]]), truth, truth > 0, "disparity")
    np.testing.assert_allclose(aligned.depth, [[1, 2, 1000]])


def test_metres_are_only_clipped():
    truth = np.array([[1.0, 2.0]])
    aligned = align(np.array([[3.0, 90.0]]), truth, truth > 0, "none", max_depth=80)
    assert (aligned.depth.tolist(), aligned.scale, aligned.shift) == ([[3.0, 80.0]], 1, 0)


@pytest.mark.parametrize("space", ["none", *INTO])
def test_a_batch_is_aligned_image_by_image(space):
    rng = np.random.default_rng(0)
    prediction, truth = rng.uniform(0.1, 1, (2, 3, 5, 6)), rng.uniform(1, 9, (2, 3, 5, 6))
    valid = rng.random(truth.shape) < 0.8
    together = align(prediction, truth, valid, space)
    assert together.scale.shape == together.shift.shape == (2, 3)
    for index in np.ndindex(2, 3):
        one = align(prediction[index], truth[index], valid[index], space)
        assert np.array_equal(one.depth, together.depth[index])
        assert (one.scale, one.shift) == (together.scale[index], together.shift[index])


def test_what_is_aligned_in_each_space():
    log_depth = np.random.default_rng(0).uniform(-1, 1, (2, 4, 5)).astype(np.float32)
    convention = depth_from_log_depth(torch.from_numpy(log_depth)[:, None])[:, 0].numpy()
    assert np.array_equal(prediction_in_space(log_depth, "depth"), convention)
    assert prediction_in_space(log_depth, "log") is log_depth
    product = prediction_in_space(log_depth, "disparity") * prediction_in_space(log_depth, "none")
    np.testing.assert_allclose(product, 1, rtol=1e-6)
    assert not prediction_in_space(np.zeros((3, 3)), "depth").any()
    with pytest.raises(ValueError, match="`space` must be one of"):
        prediction_in_space(log_depth, "metric")


def test_refusals():
    one = np.ones((2, 2))
    yes = np.ones((2, 2), dtype=bool)
    with pytest.raises(ValueError, match="`space` must be one of"):
        align(one, one, yes, "metric")
    with pytest.raises(ValueError, match="`max_depth` must be"):
        align(one, one, yes, "depth", max_depth=0)
    with pytest.raises(ValueError, match="one shape"):
        align(one, one[:1], yes, "depth")
    with pytest.raises(ValueError, match="must be boolean"):
        align(one, one, one, "depth")
    with pytest.raises(ValueError, match="no pixel"):
        align(one, one, ~yes, "depth")
    with pytest.raises(ValueError, match=r"no pixel of image \(1,\)"):
        align(np.stack([one, one]), np.stack([one, one]), np.stack([yes, ~yes]), "depth")
    with pytest.raises(ValueError, match="`truth` must be positive"):
        align(one, one * 0, yes, "depth")
    with pytest.raises(ValueError, match="`prediction` has non-finite"):
        align(one * np.nan, one, yes, "depth")


@given(number=st.integers(1, 60), value=st.floats(-1e3, 1e3))
@settings(deadline=None)
def test_any_constant_prediction_has_scale_zero(number, value):
    """The mean of equal numbers may differ from them in its last digit: that is no variance to divide by."""
    truth = np.random.default_rng(number).uniform(1, 10, (1, number))
    aligned = align(np.full((1, number), value), truth, truth > 0, "depth")
    assert aligned.scale == 0
    assert np.ptp(aligned.depth) == 0
    assert aligned.shift == pytest.approx(truth.mean())


@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10), space=spaces, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_scale_and_shift_of_the_prediction_do_not_matter(scale, shift, space, seed):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(1, 9, (6, 7))
    prediction = INTO[space](truth) + rng.normal(0, 0.05, truth.shape)
    valid = rng.random(truth.shape) < 0.8
    valid[0, 0] = True
    aligned = align(prediction, truth, valid, space, max_depth=10)
    changed = align(scale * prediction + shift, truth, valid, space, max_depth=10)
    assert changed.scale * scale == pytest.approx(aligned.scale, rel=1e-5, abs=1e-9)
    np.testing.assert_allclose(changed.depth, aligned.depth, rtol=1e-5)


@pytest.mark.parametrize("space", ["none", *INTO])
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e308])
def test_nothing_outside_the_mask_matters_or_warns(space, junk):
    truth = np.array([[1.0, 2.0, 4.0, 0.0]])
    for inside in ([0.5, 0.6, 0.9], [0.1, 0.1, 0.1]):
        clean, dirty = (np.array([[*inside, last]]) for last in (0.5, junk))
        expected, aligned = (align(p, truth, truth > 0, space, max_depth=10) for p in (clean, dirty))
        assert (aligned.scale, aligned.shift) == (expected.scale, expected.shift)
        assert np.array_equal(aligned.depth[:, :3], expected.depth[:, :3])


def test_exponentials_in_each_space_do_not_overflow():
    log_depth = np.array([[100.0, 200.0]], dtype=np.float32)
    assert prediction_in_space(log_depth, "depth").tolist() == [[0, 1]]
    np.testing.assert_allclose(prediction_in_space(log_depth, "none"), np.exp([[100.0, 200.0]]))
    np.testing.assert_allclose(prediction_in_space(-log_depth, "disparity"), np.exp([[100.0, 200.0]]))
