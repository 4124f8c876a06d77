"""RANSAC of log(depth + 1): against scikit-learn as the reference calls it, exact recovery, odd inputs."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RANSACRegressor

from depthfm_diffusers.evaluation.choices import LOG_PLUS_ONE
from depthfm_diffusers.evaluation.data.stored_predictions import StoredPredictions
from depthfm_diffusers.evaluation.metrics.masks import gentle_pixels
from depthfm_diffusers.evaluation.metrics.ransac import align_log_ransac, find_inliers, require_ransac


def noisy_maps(seed: int, outliers: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a true depth, 24×32, float32; some pixels of the prediction are drawn at random."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 20, (24, 32))
    prediction = np.log(truth + 1) + rng.normal(0, 0.02, truth.shape)
    wrong = rng.random(truth.shape) < outliers
    prediction[wrong] = rng.uniform(0, 3, wrong.sum())
    return (0.3 * prediction - 1).astype(np.float32), truth.astype(np.float32)


def reference(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Scale, shift and inliers of `recover_metric_depth_ransac` of Pixel-Perfect Depth, in its float32."""
    ransac = RANSACRegressor(max_trials=1000, random_state=0)
    ransac.fit(prediction[valid][:, None], np.log(truth[valid] + 1.0)[:, None])
    return ransac.estimator_.coef_.item(), ransac.estimator_.intercept_.item(), ransac.inlier_mask_


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outliers", [0.0, 0.3, 0.6])
def test_given_its_inliers_the_fit_is_that_of_the_reference(seed, outliers):
    """1e-6: the reference computes in float32."""
    prediction, truth = noisy_maps(seed, outliers)
    valid = np.random.default_rng(seed).random(truth.shape) < 0.9
    scale, shift, inliers = reference(prediction, truth, valid)
    assert np.array_equal(find_inliers(prediction[valid], np.log(truth[valid] + 1)), inliers)
    aligned = align_log_ransac(prediction, truth, valid)
    assert aligned.fit == "ransac"
    assert aligned.scale == pytest.approx(scale, rel=1e-6)
    assert aligned.shift == pytest.approx(shift, abs=1e-6)
    expected = np.clip(np.exp(scale * prediction + shift) - 1, 1e-3, truth[valid].max())
    np.testing.assert_allclose(aligned.depth, expected, rtol=1e-5, atol=1e-5)


@given(scale=st.floats(0.05, 20), shift=st.floats(-3, 3), seed=st.integers(0, 99), outliers=st.floats(0, 0.2))
@settings(deadline=None, max_examples=25)
def test_outliers_do_not_count(scale, shift, seed, outliers):
    """The truth, scaled and shifted, is found exactly through pixels that have nothing to do with it.

    Not with any number of them: the reference stops at 99 % certainty, and its tolerance, the median deviation, lets a
    flat line have half of all pixels.
    """
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 20, (12, 16))
    prediction = (np.log(truth + 1) - shift) / scale
    wrong = rng.random(truth.shape) < outliers
    prediction[wrong] += 100 / scale
    aligned = align_log_ransac(prediction, truth, np.ones_like(wrong))
    np.testing.assert_allclose(aligned.depth[~wrong], truth[~wrong], rtol=1e-6)
    assert aligned.scale == pytest.approx(scale, rel=1e-6)
    assert np.array_equal(aligned.depth, align_log_ransac(prediction, truth, np.ones_like(wrong)).depth)


def test_a_batch_is_aligned_image_by_image_and_nothing_outside_the_mask_matters():
    maps = [noisy_maps(seed) for seed in range(2)]
    prediction, truth = (np.stack([one[i] for one in maps]) for i in (0, 1))
    valid = np.random.default_rng(0).random(truth.shape) < 0.8
    together = align_log_ransac(prediction, truth, valid)
    assert together.fit.tolist() == ["ransac", "ransac"]
    for index in range(2):
        junk = np.where(valid[index], prediction[index], np.inf)
        one = align_log_ransac(junk, truth[index], valid[index])
        assert (one.scale, one.shift) == (together.scale[index], together.shift[index])
        assert np.array_equal(one.depth[valid[index]], together.depth[index][valid[index]])


TRUTH = np.random.default_rng(0).uniform(1, 9, (8, 10))
MEAN = np.log(TRUTH + 1).mean()


@pytest.mark.parametrize(
    ("prediction", "truth", "fit", "scale", "shift"),
    [
        (np.full((8, 10), 2.0), TRUTH, "mean_ratio", MEAN / 2, 0),
        (np.full((8, 10), -2.0), TRUTH, "mean_ratio", -MEAN / 2, 0),
        (np.zeros((8, 10)), TRUTH, "constant", 0, MEAN),
        (5 - np.log(TRUTH + 1), TRUTH, "mean_ratio", MEAN / (5 - MEAN), 0),
        (np.log(TRUTH + 1), TRUTH, "ransac", 1, 0),
        (TRUTH, np.full((8, 10), 3.0), "mean_ratio", np.log(4) / TRUTH.mean(), 0),
    ],
    ids=["constant", "negative constant", "zero", "upside down", "all inliers", "a flat wall"],
)
def test_what_ransac_cannot_fit_has_a_name(prediction, truth, fit, scale, shift):
    aligned = align_log_ransac(prediction, truth, np.ones((8, 10), bool))
    assert aligned.fit == fit
    assert aligned.scale == pytest.approx(scale)
    assert aligned.shift == pytest.approx(shift, abs=1e-9)
    assert aligned.depth.min() >= 1e-3
    assert aligned.depth.max() <= truth.max()


def test_one_pixel_and_two():
    valid = np.zeros(TRUTH.shape, bool)
    valid[2, 3] = True
    assert align_log_ransac(TRUTH, TRUTH, valid).fit == "unchanged"
    valid[4, 5] = True
    aligned = align_log_ransac(TRUTH, TRUTH, valid)
    assert aligned.fit == "ransac"
    np.testing.assert_allclose(aligned.depth[valid], TRUTH[valid])


def test_depth_that_is_zero_is_refused():
    with pytest.raises(ValueError, match="`truth` must be positive"):
        align_log_ransac(TRUTH, TRUTH * 0, np.ones(TRUTH.shape, bool))
    with pytest.raises(ValueError, match="`prediction` has non-finite"):
        align_log_ransac(TRUTH * np.nan, TRUTH, np.ones(TRUTH.shape, bool))


@pytest.mark.parametrize(("form", "sign"), [("depth", 1), ("log", 1), ("disparity", -1)])
def test_stored_maps_are_taken_as_they_are(tmp_path, form, sign):
    """Only disparity is turned round: far must be large."""
    values = np.array([[-1.0, 0.0, 4.0]])
    np.save(tmp_path / "a.npy", values)
    found = StoredPredictions(str(tmp_path), form, ["a"]).read("a", (1, 3), LOG_PLUS_ONE)
    assert np.array_equal(found, sign * values)


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"protocol ppd needs .*'depthfm_diffusers\[evaluate\]'"):
        require_ransac()


def test_steep_pixels():
    """A plane that rises by 0.01 m per pixel has a Sobel response of 0.08; a step of 1 m is steep on both sides."""
    plane = np.arange(12, dtype=np.float32) * np.float32(0.01) + np.ones((9, 1), np.float32)
    assert gentle_pixels(plane, 0.081).all()
    assert not gentle_pixels(plane, 0.079)[1:-1, 1:-1].any()
    step = np.ones((9, 12), np.float32)
    step[:, 6:] = 2
    assert np.flatnonzero(~gentle_pixels(step, 0.3).all(0)).tolist() == [5, 6]
    step[4, 2] = np.nan
    step[4, 9] = np.inf
    assert gentle_pixels(step, 0.3)[4, 2]
