"""Boundary F1: Depth Pro's own numbers, edges counted by hand, masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.evaluation import boundary_f1


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes before a wall, and a noisy, partly shifted estimate of them at another scale."""
    rng = np.random.default_rng(seed)
    truth = np.full((24, 32), 8.0)
    for _ in range(4):
        top, left = rng.integers(0, 16, 2)
        height, width = rng.integers(4, 12, 2)
        truth[top : top + height, left : left + width] = rng.uniform(1, 8)
    depth = np.roll(truth, int(rng.integers(0, 2)), axis=1) * rng.uniform(0.97, 1.03, truth.shape) * 3
    return depth, truth


# `SI_boundary_F1` of github.com/apple/ml-depth-pro, src/depth_pro/eval/boundary_metrics.py, on the four scenes.
@pytest.mark.parametrize(
    ("seed", "theirs"),
    list(enumerate([0.9678991534644623, 0.39525090564560195, 0.39117033591214634, 0.9574516450088173])),
)
def test_depth_pros_numbers(seed, theirs):
    depth, truth = scene(seed)
    assert boundary_f1(depth, truth, truth > 0) == pytest.approx(theirs, rel=1e-12)


def test_edges_by_hand():
    """One row, far-near-far: the estimate finds the left edge and misses the right one.

    Of the four kinds two have true edges, one each; precision and recall are both 1/4.
    """
    truth = np.array([[8.0, 8, 2, 2, 8, 8]])
    depth = np.array([[8.0, 8, 2, 2, 2, 2]])
    assert boundary_f1(depth, truth, truth > 0) == pytest.approx(0.25)
    # Kinds without edges count as 0, in Depth Pro's code as well: even a perfect row reaches 2 of 4 only.
    assert boundary_f1(truth, truth, truth > 0) == pytest.approx(0.5)


def test_scale_does_not_matter_and_polarity_does():
    depth, truth = scene(0)
    valid = truth > 0
    assert boundary_f1(depth * 17, truth, valid) == pytest.approx(boundary_f1(depth, truth, valid), rel=1e-12)
    assert boundary_f1(1 / depth, truth, valid) < 0.1 * boundary_f1(depth, truth, valid)


def test_pairs_with_an_unknown_pixel_do_not_count():
    depth, truth = scene(1)
    valid = np.ones_like(truth, dtype=bool)
    valid[5:9, 10:20] = False
    value = boundary_f1(depth, truth, valid)
    depth[~valid], truth[~valid] = np.nan, 0.0
    assert boundary_f1(depth, truth, valid) == value


def test_a_truth_without_edges_has_no_score():
    flat = np.ones((2, 4, 4))
    flat[1, :, 2:] = 3
    values = boundary_f1(flat, flat, flat > 0)
    assert np.isnan(values[0])
    assert values[1] == pytest.approx(0.25)


def test_a_ratio_of_exactly_the_threshold_is_no_edge():
    """5 / 4 is the last threshold, 21 / 20 the first; logarithms would round one way or the other."""
    for near in range(4, 400, 4):
        row = np.array([[near, near * 5 / 4]])
        # Above nine of the ten thresholds: one of four kinds of edge, so precision and recall are 1/4.
        weights = np.linspace(1.05, 1.25, 10)
        assert boundary_f1(row, row, row > 0) == pytest.approx(0.25 * weights[:-1].sum() / weights.sum())
    for near in range(20, 2000, 20):
        row = np.array([[near, near * 21 / 20]])
        assert np.isnan(boundary_f1(row, row, row > 0))


@given(scale=st.floats(0.1, 10), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_batches_scales_and_what_lies_outside_the_mask(scale, seed):
    rng = np.random.default_rng(seed)
    depth, truth = (np.stack(maps) for maps in zip(*(scene(seed + i) for i in range(3)), strict=True))
    valid = rng.random(truth.shape) < 0.9
    together = boundary_f1(depth, truth, valid)
    junk = rng.choice([0.0, -1.0, np.nan, np.inf], truth.shape)
    for i in range(3):
        dirty = [np.where(valid[i], scale * m[i], junk[i]) for m in (depth, truth)]
        np.testing.assert_allclose(boundary_f1(*dirty, valid[i]), together[i], rtol=1e-12)
        assert boundary_f1(depth[i], truth[i], valid[i]) == together[i]
    assert (together <= 1).all()
    assert (boundary_f1(truth, truth, valid) >= together).all()


def test_refusals():
    one = np.ones((2, 2))
    with pytest.raises(ValueError, match="`depth` must be positive and finite"):
        boundary_f1(-one, one, one > 0)
    with pytest.raises(ValueError, match="`truth` must be positive and finite"):
        boundary_f1(one, one * np.inf, one > 0)
    with pytest.raises(ValueError, match="no pixel"):
        boundary_f1(one, one, one > 1)
