"""`depthfm_diffusers/depth_normalization.py`: quantiles, holes, sky, and the inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthfm_diffusers.depth_normalization import (
    NORMALIZATIONS,
    DepthNormalization,
    denormalize_log_depth,
    normalize_log_depth,
)
from depthfm_diffusers.evaluation.choices import DEPTH_NORMALIZATIONS


def test_quantiles_map_to_minus_one_and_one():
    # 101 depths whose logs are 0, 0.01 ... 1: the 2 % and 98 % quantiles are 0.02 and 0.98.
    depth = torch.exp(torch.linspace(0, 1, 101)).view(1, 1, -1)
    result = normalize_log_depth(depth)
    assert result.log_near == pytest.approx(0.02, abs=1e-6)
    assert result.log_far == pytest.approx(0.98, abs=1e-6)
    assert result.values[0, 0, [2, 50, 98]].tolist() == pytest.approx([-1, 0, 1], abs=1e-5)
    assert result.values.min() == -1
    assert result.values.max() == 1


def test_invalid_pixels_are_far_and_do_not_move_the_quantiles():
    depth = torch.exp(torch.linspace(0, 1, 101)).view(1, 1, -1)
    holes = torch.tensor([0.0, -1.0, math.nan, math.inf]).view(1, 1, -1)
    result = normalize_log_depth(torch.cat([depth, holes], -1))
    assert result.values[..., -4:].tolist() == [[[1.0] * 4]]
    assert not result.valid[..., -4:].any()
    assert result.log_far == pytest.approx(normalize_log_depth(depth).log_far)


@pytest.mark.parametrize("depth", [torch.zeros(1, 4, 4), torch.full((1, 4, 4), 3.0)])
def test_frame_without_range_is_far_everywhere(depth):
    result = normalize_log_depth(depth)
    assert not result.has_range
    assert (result.values == 1).all()


@given(st.floats(0.01, 5), st.floats(1.1, 50), st.integers(0, 99))
def test_inverse_inside_the_clip(near, ratio, seed):
    rng = np.random.default_rng(seed)
    depth = torch.from_numpy(near * ratio ** rng.random((1, 20, 20))).float()
    result = normalize_log_depth(depth)
    inside = (result.values > -1) & (result.values < 1)
    bounds = torch.tensor(result.log_near), torch.tensor(result.log_far)
    back = denormalize_log_depth(result.values, *bounds)
    torch.testing.assert_close(back[inside], depth[inside], rtol=1e-4, atol=0)


def test_other_quantiles():
    depth = torch.exp(torch.linspace(0, 1, 101)).view(1, 1, -1)
    result = normalize_log_depth(depth, DepthNormalization(0.0, 0.5))
    assert (result.log_near, result.log_far) == pytest.approx((0.0, 0.5), abs=1e-6)
    assert result.values[0, 0, [0, 25, 50, 100]].tolist() == pytest.approx([-1, 0, 1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 0.5, "high": 0.5}, "quantiles"),
        ({"low": -0.1}, "quantiles"),
        ({"high": 1.1}, "quantiles"),
        ({"low": math.nan}, "quantiles"),
        ({"cap": 0.0}, "cap"),
        ({"cap": math.nan}, "cap"),
        ({"cap": math.inf}, "cap"),
        ({"sky": "near"}, "rule for sky"),
    ],
)
def test_bad_normalization_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DepthNormalization(**fields)


def test_sky_of_another_shape_or_type_is_refused():
    for sky in (torch.zeros(1, 3, 2, dtype=torch.bool), torch.zeros(1, 2, 2)):
        with pytest.raises(ValueError, match="`sky` must be bool"):
            normalize_log_depth(torch.ones(1, 2, 2), sky=sky)


@pytest.mark.parametrize("rule", ["mask", "far"])
def test_sky_cap_and_holes(rule):
    """Six kinds of pixels beside a ramp: only the ramp moves the quantiles, and only sky follows the rule."""
    ramp = torch.exp(torch.linspace(0, 1, 101))
    #                      sky, no depth | sky, with depth | beyond the cap | at the cap's right side | holes
    kinds = torch.tensor([0.0, 2.0, 90.0, 20.001, 0.0, math.nan, -1.0, math.inf])
    depth = torch.cat([ramp, kinds]).view(1, 1, -1)
    sky = torch.zeros_like(depth, dtype=torch.bool)
    sky[..., 101:103] = True
    result = normalize_log_depth(depth, DepthNormalization(cap=20.0, sky=rule), sky)
    alone = normalize_log_depth(ramp.view(1, 1, -1))
    assert (result.log_near, result.log_far) == (alone.log_near, alone.log_far)
    torch.testing.assert_close(result.values[..., :101], alone.values, rtol=0, atol=0)
    assert (result.values[..., 101:] == 1).all()
    assert result.known[0, 0].tolist() == [True] * 101 + [False] * 8
    assert result.valid[0, 0].tolist() == [True] * 101 + [rule == "far"] * 4 + [False] * 4


def test_a_depth_at_the_cap_is_known():
    depth = torch.linspace(1, 20, 20).view(1, 1, -1)
    assert normalize_log_depth(depth, DepthNormalization(cap=20.0)).known.all()


@pytest.mark.parametrize("rule", ["mask", "far"])
def test_frame_of_nothing_but_sky(rule):
    sky = torch.ones(1, 4, 4, dtype=torch.bool)
    result = normalize_log_depth(torch.zeros(1, 4, 4), DepthNormalization(sky=rule), sky)
    assert not result.has_range
    assert (result.values == 1).all()
    assert not result.known.any()
    assert result.valid.all() == (rule == "far")


@given(st.floats(0.01, 5), st.floats(1.1, 50), st.floats(0, 0.3), st.floats(0.7, 1), st.integers(0, 99))
def test_masks_and_values_agree_whatever_the_frame(near, ratio, low, high, seed):
    rng = np.random.default_rng(seed)
    depth = torch.from_numpy(near * ratio ** rng.random((1, 12, 12))).float()
    depth[torch.from_numpy(rng.random((1, 12, 12)) < 0.2)] = 0
    sky = torch.from_numpy(rng.random((1, 12, 12)) < 0.2)
    cap = near * ratio**0.7
    result = normalize_log_depth(depth, DepthNormalization(low, high, cap, "far"), sky)
    assert (result.valid | ~result.known).all()
    assert (result.values.abs() <= 1).all()
    assert (result.values[~result.known] == 1).all()
    assert (depth[result.known] <= cap).all()
    assert not (result.known & sky).any()
    bounds = torch.tensor(result.log_near), torch.tensor(result.log_far)
    back = denormalize_log_depth(result.values, *bounds)
    inside = result.known & (depth.log() >= bounds[0]) & (depth.log() <= bounds[1])
    torch.testing.assert_close(back[inside], depth[inside], rtol=1e-4, atol=0)


def preprocess_depth_of_diff2flow(depth: np.ndarray) -> np.ndarray:
    """`preprocess_depth` of CompVis/diff2flow at commit 33239aa, `diff2flow/dataset/depth_preprocessing.py`."""
    depth = np.minimum(depth, 120)
    low, high = np.log(np.percentile(depth, (1, 99)))
    return ((np.log(depth) - low) / (high - low) - 0.5) * 2


def test_the_settings_have_the_names_that_evaluation_offers():
    assert tuple(NORMALIZATIONS) == DEPTH_NORMALIZATIONS
    assert NORMALIZATIONS["depthfm"] == DepthNormalization()


def test_diff2flow_is_what_its_code_computes_of_a_frame_without_holes():
    """Within the cap; quantiles are interpolated in log depth here, in depth there: 1e-3 for 5,000 pixels."""
    depth = np.random.default_rng(0).lognormal(1.0, 0.7, (1, 50, 100)).astype(np.float32)
    result = normalize_log_depth(torch.from_numpy(depth), NORMALIZATIONS["diff2flow"])
    np.testing.assert_allclose(result.values.numpy(), preprocess_depth_of_diff2flow(depth), atol=1e-3)
    assert result.values.min() < -1.2
    assert result.values.max() > 1.2


def test_what_is_not_clipped_is_undone_everywhere():
    depth = torch.from_numpy(np.random.default_rng(0).lognormal(1.0, 0.7, (1, 50, 100))).float()
    result = normalize_log_depth(depth, NORMALIZATIONS["diff2flow"])
    back = denormalize_log_depth(result.values, torch.tensor(result.log_near), torch.tensor(result.log_far))
    torch.testing.assert_close(back, depth, rtol=1e-4, atol=0)


@pytest.mark.parametrize("rule", ["mask", "far"])
def test_nothing_known_is_farther_than_sky_and_holes(rule):
    """Also without clipping, where y = 1 is nearer than the farthest 1 %."""
    depth = torch.from_numpy(np.random.default_rng(0).lognormal(1.0, 0.7, (1, 20, 20))).float()
    depth[:, :3] = torch.tensor([0.0, math.nan, 150.0, 1000.0]).repeat(5)
    unclipped = DepthNormalization(0.01, 0.99, 120.0, rule, clip=False)
    result = normalize_log_depth(depth, unclipped)
    assert result.known[:, 3:].all()
    assert not result.known[:, :3].any()
    assert (result.values[:, :3] == result.values[:, 3:].max()).all()
    assert result.valid[:, :3].float().mean() == (0.5 if rule == "far" else 0.0)
    assert (normalize_log_depth(torch.zeros(1, 4, 4), unclipped).values == 1).all()
