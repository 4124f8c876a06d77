"""`training/objectives/pixel_losses.py` in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.walls import wall
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from depthfm_diffusers.geometry import intrinsics_from_fov
from depthfm_diffusers.training.objectives.pixel_losses import (
    MATCHING_STRIDE,
    MATCHING_WINDOW,
    MAX_DECODED,
    decoded_limit,
    gradient_matching_loss,
    has_intrinsics,
    l1_loss,
    normals_loss,
    relative_depth_loss,
    scale_shift_invariant_loss,
    windowed_matching_loss,
)
from depthfm_diffusers.training.validation.depth_validation import score_log_depth

BOUNDS = (float(np.log(0.5)), float(np.log(10.0)))


def normalized_map(depth: torch.Tensor) -> torch.Tensor:
    """Normalised log depth under `BOUNDS`, not clipped."""
    return 2 * (depth.log() - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0]) - 1


SLOPES = [(0.0, 0.0), (1.0, 1 - 1 / np.sqrt(2)), (-0.75, 0.2)]


@pytest.mark.parametrize(("slope", "expected"), SLOPES)
def test_normals_loss_is_the_cosine_of_the_angle_between_planes(slope, expected):
    """Tilts of 0, 45 and -37 degrees against a frontal wall; 1e-3 for the finite differences.

    Unknown pixels and their neighbours, and samples without a camera, do not count.
    """
    tilted, intrinsics = wall(slope)
    true, _ = wall(0.0)
    known = torch.ones_like(true, dtype=torch.bool)
    bounds = torch.tensor([BOUNDS])
    loss = normals_loss(normalized_map(tilted), true, known, bounds, intrinsics)
    assert loss.item() == pytest.approx(expected, abs=1e-3)

    values, holes = normalized_map(tilted), known.clone()
    holes[..., 3:7, 5:9] = False
    values[..., 3:7, 5:9] = 1.5
    loss = normals_loss(values, torch.where(holes, true, 0), holes, bounds, intrinsics)
    assert loss.item() == pytest.approx(expected, abs=1e-3)
    # A second sample, of another slope, whose camera is not known.
    pair = torch.cat([normalized_map(tilted), normalized_map(wall(0.7)[0])])
    cameras = torch.cat([intrinsics, torch.full((1, 3, 3), np.nan)])
    doubled = (t.expand(2, *t.shape[1:]) for t in (true, known, bounds))
    assert has_intrinsics(cameras).tolist() == [True, False]
    assert normals_loss(pair, *doubled, cameras).item() == pytest.approx(expected, abs=1e-3)


def test_normals_use_the_intrinsics_of_each_sample():
    """One map of values under two cameras is two planes; each matches its own truth only."""
    narrow, wide = (intrinsics_from_fov(fov, 24, 24)[None] for fov in (30.0, 90.0))
    depth, _ = wall(0.5)
    values, known = normalized_map(depth).expand(2, -1, -1, -1), torch.ones(2, 1, 24, 24, dtype=torch.bool)
    bounds, cameras = torch.tensor([BOUNDS]).expand(2, -1), torch.cat([narrow, wide])
    assert normals_loss(values, depth.expand(2, -1, -1, -1), known, bounds, cameras).item() < 1e-6
    alone = [normals_loss(values[:1], wall(0.0)[0], known[:1], bounds[:1], one).item() for one in (narrow, wide)]
    assert abs(alone[0] - alone[1]) > 0.05
    both = normals_loss(values, wall(0.0)[0].expand(2, -1, -1, -1), known, bounds, cameras).item()
    assert both == pytest.approx(np.mean(alone), abs=1e-6)


def test_normals_of_a_wild_estimate_are_finite():
    depth, intrinsics = wall(0.3)
    values = (torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 1e4).requires_grad_()
    bounds = torch.tensor([[np.log(1e-3), np.log(1e4)]], dtype=torch.float32)
    loss = normals_loss(values, depth, torch.ones_like(depth, dtype=torch.bool), bounds, intrinsics)
    loss.backward()
    assert 0 <= loss.item() <= 2
    assert torch.isfinite(values.grad).all()
    assert not values.grad[values.abs() > MAX_DECODED].any()


def test_the_limit_is_beyond_the_true_values():
    target = torch.tensor([[-1.0, 1.0], [0.2, 0.0], [-3.5, 2.0]]).view(3, 1, 1, 2)
    assert decoded_limit(target).flatten().tolist() == [MAX_DECODED, MAX_DECODED, 4.5]


def test_normals_of_values_that_are_not_clipped_are_right():
    """A slope of which half is nearer than the near quantile: its normals are the true ones, and have a gradient."""
    depth, intrinsics = wall(0.6)
    low, high = np.quantile(depth.log().numpy(), [0.5, 0.6])
    bounds = torch.tensor([[low, high]], dtype=torch.float32)
    target = 2 * (depth.log() - low) / (high - low) - 1
    assert target.abs().max() > 3
    known = torch.ones_like(depth, dtype=torch.bool)
    assert normals_loss(target, depth, known, bounds, intrinsics) > 1e-3  # clamped as if the truth were clipped
    values = (target + 0.01).requires_grad_()
    loss = normals_loss(values, depth, known, bounds, intrinsics, decoded_limit(target))
    assert loss < 1e-5
    values = (target * 0.9).requires_grad_()
    normals_loss(values, depth, known, bounds, intrinsics, decoded_limit(target)).backward()
    assert values.grad[values.abs() > 2].any()


def test_gradient_matching_of_a_ramp():
    """Residual a x: |differences| a, 2a, 4a, 8a at the four scales, horizontally; b y adds the same vertically."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    target = torch.randn(2, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones_like(target, dtype=torch.bool)
    assert gradient_matching_loss(target + 3.0, target, everywhere).item() < 1e-4  # a shift costs nothing
    loss = gradient_matching_loss(target + 0.01 * x - 0.02 * y, target, everywhere)
    assert loss.item() == pytest.approx(15 * (0.01 + 0.02), rel=1e-3)
    # What is not valid is not looked at, as long as a scale has valid pairs.
    part, values = everywhere.clone(), target + 0.01 * x - 0.02 * y
    part[..., 5:9, 3:11] = False
    values[..., 5:9, 3:11] = np.nan
    assert gradient_matching_loss(values, target, part).item() == pytest.approx(15 * 0.03, rel=1e-3)
    assert gradient_matching_loss(values, target, torch.zeros_like(part)).item() == 0.0


def test_gradient_matching_of_maps_smaller_than_its_scales():
    values = torch.tensor([[0.0, 1.0, 2.0]]).view(1, 1, 1, 3)
    valid = torch.ones_like(values, dtype=torch.bool)
    # Differences 1 and 1; then the pixels 0 and 2, difference 2; then a single pixel.
    assert gradient_matching_loss(values, torch.zeros_like(values), valid).item() == pytest.approx(3.0)


def random_maps(seed: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values and targets in about [-1, 1], and a mask of two thirds of the pixels; what is not valid is NaN."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(count, 1, 12, 17, generator=generator) * 2 - 1
    values = target + 0.3 * torch.randn(target.shape, generator=generator)
    valid = torch.rand(target.shape, generator=generator) < 0.7
    return torch.where(valid, values, torch.nan), target, valid


@given(scale=st.floats(0.2, 3.0), shift=st.floats(-2.0, 2.0), seed=st.integers(0, 99))
def test_scale_and_shift_cost_nothing(scale, shift, seed):
    _, target, valid = random_maps(seed)
    assert scale_shift_invariant_loss(scale * target + shift, target, valid).item() < 1e-4
    assert l1_loss(target + 0.25, target, valid).item() == pytest.approx(0.25, abs=1e-6)


def test_scale_shift_invariant_loss_is_the_l1_after_least_squares():
    values, target, valid = random_maps(1)
    errors = []
    for value, true, mask in zip(values, target, valid, strict=True):
        x, y = value[mask].double().numpy(), true[mask].double().numpy()
        a, b = np.polyfit(x, y, 1)
        errors.append(np.abs(a * x + b - y))
    expected = np.concatenate(errors).mean()
    assert scale_shift_invariant_loss(values, target, valid).item() == pytest.approx(expected, rel=1e-5)


def test_relative_depth_loss_is_the_error_that_evaluation_reports():
    values, _, valid = random_maps(2, count=1)
    depth = torch.exp(torch.where(valid, values, 0) * 0.7 + 0.4 * torch.rand(values.shape)) * 3
    loss = relative_depth_loss(values, torch.where(valid, depth, 0), valid)
    scores = score_log_depth(torch.where(valid, values, 0)[0, 0].numpy(), torch.where(valid, depth, 0)[0, 0].numpy())
    assert loss.item() == pytest.approx(scores["abs_rel_depth"], rel=1e-4)


@pytest.mark.parametrize("loss", [l1_loss, scale_shift_invariant_loss, relative_depth_loss, windowed_matching_loss])
def test_losses_without_a_valid_pixel_or_contrast_are_finite(loss):
    values, target, valid = random_maps(3)
    for changed, mask in ((values, torch.zeros_like(valid)), (torch.zeros_like(values), valid)):
        values = changed.clone().requires_grad_()
        result = loss(values, target + 2, mask)
        result.backward()
        assert torch.isfinite(result)
        assert torch.isfinite(values.grad).all()
    assert loss(torch.zeros_like(target), target + 2, torch.zeros_like(valid)).item() == 0.0


@pytest.mark.parametrize("loss", [l1_loss, scale_shift_invariant_loss, relative_depth_loss])
def test_what_is_not_valid_reaches_no_gradient(loss):
    values, target, valid = random_maps(4)
    values.requires_grad_()
    loss(values, target + 2, valid).backward()
    assert not values.grad[~valid].any()
    assert values.grad[valid].any()


def test_windows_are_matched_in_the_best_way():
    """The assignment of least cost, by the Hungarian method."""
    generator = torch.Generator().manual_seed(0)
    size = MATCHING_WINDOW + 2 * MATCHING_STRIDE
    values, target = (torch.rand(1, 1, size, size, generator=generator) for _ in range(2))
    costs = []
    for top in range(0, size - MATCHING_WINDOW + 1, MATCHING_STRIDE):
        for left in range(0, size - MATCHING_WINDOW + 1, MATCHING_STRIDE):
            window = (0, 0, slice(top, top + MATCHING_WINDOW), slice(left, left + MATCHING_WINDOW))
            cost = (values[window].reshape(-1, 1) - target[window].reshape(1, -1)).abs().numpy()
            costs.append(cost[linear_sum_assignment(cost)].mean())
    everywhere = torch.ones_like(target, dtype=torch.bool)
    assert len(costs) == 9
    assert windowed_matching_loss(values, target, everywhere).item() == pytest.approx(np.mean(costs), rel=1e-5)


def test_matching_prefers_a_sharp_edge_beside_its_place_to_a_blurred_one():
    step = (torch.arange(40) >= 20).float().expand(1, 1, 40, 40).clone()
    everywhere = torch.ones_like(step, dtype=torch.bool)
    # One pixel off, but not along the whole edge: in every window as many pixels are far as in the truth.
    zigzag = step.clone()
    zigzag[..., ::2, 20], zigzag[..., 1::2, 19] = 0.0, 1.0
    blurred = F.avg_pool2d(F.pad(step, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    assert windowed_matching_loss(step, step, everywhere).item() == 0.0
    losses = [windowed_matching_loss(maps, step, everywhere).item() for maps in (zigzag, blurred)]
    errors = [l1_loss(maps, step, everywhere).item() for maps in (zigzag, blurred)]
    assert losses[0] < 0.4 * losses[1]
    assert errors[0] > 0.8 * errors[1]


def test_windows_with_holes_do_not_count():
    values, target = torch.zeros(1, 1, 11, 11), torch.ones(1, 1, 11, 11)
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[..., 0, 0], values[..., 0, 0] = False, torch.nan
    assert windowed_matching_loss(values, target, valid).item() == 1.0
    valid[..., ::4, ::4] = False
    assert windowed_matching_loss(torch.zeros_like(target), target, valid).item() == 0.0
