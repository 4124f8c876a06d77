"""Log depth from frame to frame: fits of scale and shift, warping, what is found again."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.videos import moving_pictures

from depthfm_diffusers.temporal import fit_scale_and_shift, found_again, optical_flow, soften, warp

ONES = np.ones((60, 80), np.float32)


def random_map(seed=0):
    return np.random.default_rng(seed).normal(size=ONES.shape).astype(np.float32)


def test_fit_is_exact_without_noise():
    current = random_map()
    assert fit_scale_and_shift(current, 1.5 * current - 0.2, ONES) == pytest.approx((1.5, -0.2), abs=1e-5)


def test_fit_bears_a_third_of_wrong_pixels():
    current = random_map()
    before = 0.8 * current + 0.3
    before[:, :27] = random_map(1)[:, :27] + 5
    assert fit_scale_and_shift(current, before, ONES) == pytest.approx((0.8, 0.3), abs=0.02)


def test_the_scale_does_not_shrink_over_many_frames():
    """Least squares would multiply it by 0.8 with this noise, frame after frame."""
    scales = []
    for seed in range(20):
        true, first, second = random_map(seed), random_map(100 + seed), random_map(200 + seed)
        scales.append(fit_scale_and_shift(true + 0.5 * first, true + 0.5 * second, ONES)[0])
    assert np.prod(scales) == pytest.approx(1, abs=0.1)


def test_pixels_without_weight_do_not_count():
    current = random_map()
    before, weights = 2 * current, ONES.copy()
    before[30:] = 7
    weights[30:] = 0
    assert fit_scale_and_shift(current, before, weights) == pytest.approx((2, 0), abs=1e-5)


@pytest.mark.parametrize("case", ["flat", "few pixels", "no pixel"])
def test_no_fit(case):
    current = np.zeros_like(ONES) if case == "flat" else random_map()
    weights = ONES.copy()
    if case != "flat":
        weights.flat[(10 if case == "few pixels" else 0) :] = 0
    assert fit_scale_and_shift(current, random_map(1), weights) is None


def test_flow_finds_a_movement_and_warp_undoes_it():
    before, now = (np.repeat(np.repeat(one[..., 0], 2, 0), 2, 1) for one in moving_pictures(2, 60, 80, seed=3))
    flow = optical_flow(now, before)
    inner = (slice(20, -20), slice(20, -20))
    assert np.median(flow[inner], axis=(0, 1)) == pytest.approx((2, 0), abs=0.2)
    assert np.mean(found_again(now, before, flow)[inner]) > 0.95
    values = np.add.outer(np.zeros(120), np.arange(160)).astype(np.float32)
    assert np.median(warp(values, flow)[inner] - values[inner]) == pytest.approx(2, abs=0.2)


def test_brighter_frames_are_found_again_and_others_are_not():
    now = np.repeat(np.repeat(moving_pictures(1, 60, 80)[0][..., 0] // 2, 2, 0), 2, 1)
    still = np.zeros((*now.shape, 2), np.float32)
    assert found_again(now, now + np.uint8(60), still).all()
    assert found_again(now, moving_pictures(1, 120, 160, seed=5)[0][..., 0], still).mean() < 0.35


def test_single_pixels_go_with_their_neighbours_and_steps_are_soft():
    now = np.full((40, 60), 100, np.uint8)
    before = now.copy()
    before[10::9, 10::9] = 200
    before[:, 40:] = np.arange(20) * 10
    found = found_again(now, before, np.zeros((40, 60, 2), np.float32))
    assert found[:, :40].all()
    weights = soften(found)
    assert (weights[:, :34] > 0.99).all()
    assert np.abs(np.diff(weights, axis=1)).max() < 0.35


def test_pixels_from_outside_are_not_found():
    now = np.full((20, 30), 100, np.uint8)
    flow = np.zeros((20, 30, 2), np.float32)
    flow[..., 0] = 5
    found = found_again(now, now, flow)
    assert found[:, :25].all()
    assert not found[:, 25:].any()


def test_pictures_too_small_for_the_flow_have_none():
    assert not optical_flow(np.zeros((9, 40), np.uint8), np.zeros((9, 40), np.uint8)).any()
