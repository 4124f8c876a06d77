"""Interpolation between points that stops at edges."""

from __future__ import annotations

import math

import pytest
import torch

from depthfm_diffusers.edge_aware_interpolation import EdgeAwareInterpolator, Kernel

SIZE = (40, 56)


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two slanted surfaces, the right one farther: values, image and predicted log depth H×W."""
    y, x = torch.meshgrid(*(torch.arange(side) / 50 for side in SIZE), indexing="ij")
    right = (x > 0.5).float()
    return 0.3 * y + 0.2 * x + right, torch.stack([right, 1 - right, y]), 0.5 * right + 0.1 * y


def points(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randperm(SIZE[0] * SIZE[1], generator=torch.Generator().manual_seed(seed))[:count]
    return pixels // SIZE[1], pixels % SIZE[1]


def test_edges_stay_sharp_and_slopes_are_followed():
    values, image, prediction = scene()
    rows, columns = points(60)
    result = EdgeAwareInterpolator(rows, columns, image, prediction).interpolate(values[rows, columns], Kernel())
    assert (result.mean - values).abs().max() < 0.2  # the step between the surfaces is 1
    assert (result.mean - values).abs().mean() < 0.02


@pytest.mark.parametrize("count", [2, 10, 300, SIZE[0] * SIZE[1]])
def test_it_passes_through_the_points(count):
    values, image, prediction = scene()
    rows, columns = points(count)
    result = EdgeAwareInterpolator(rows, columns, image, prediction).interpolate(values[rows, columns], Kernel())
    assert result.mean.isfinite().all()
    assert (result.variance >= 0).all()
    assert (result.mean - values)[rows, columns].abs().mean() < 0.02


def test_the_variance_grows_with_the_distance():
    values, image, prediction = scene()
    rows, columns = torch.tensor([5, 8, 12, 7]), torch.tensor([4, 9, 6, 12])
    variance = (
        EdgeAwareInterpolator(rows, columns, image, prediction).interpolate(values[rows, columns], Kernel()).variance
    )
    assert variance[8, 9] < variance[20, 9] < variance[39, 9] < variance[39, 55]


def test_wrong_points_are_found():
    values, image, prediction = scene()
    rows, columns = points(200)
    given = values[rows, columns].clone()
    given[:20] += 2.0
    interpolator = EdgeAwareInterpolator(rows, columns, image, prediction)
    robust = interpolator.interpolate(given, Kernel(outlier_deviations=3.0))
    assert (robust.mean - values).abs().mean() < 0.03
    assert robust.noise[:20].min() > 10 * robust.noise[20:].median()
    trusting = interpolator.interpolate(given, Kernel())
    assert (trusting.mean - values).abs().mean() > 3 * (robust.mean - values).abs().mean()
    kernels = [Kernel(outlier_deviations=one) for one in (math.inf, 3.0)]
    assert interpolator.choose_kernel([given], kernels) == (0, 1)


def test_the_values_that_predict_left_out_points_are_chosen():
    values, image, prediction = scene()
    rows, columns = points(100)
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    known = values[rows, columns]
    interpolator = EdgeAwareInterpolator(rows, columns, image, prediction)
    assert interpolator.choose_kernel([known + noise, known], [Kernel()]) == (1, 0)


def test_a_left_out_point_is_predicted_from_the_others():
    values, image, prediction = scene()
    rows, columns = points(20)
    known = values[rows, columns]
    errors = EdgeAwareInterpolator(rows, columns, image, prediction).interpolate(known, Kernel()).left_out_errors
    others = torch.arange(20) != 3
    without = EdgeAwareInterpolator(rows[others], columns[others], image, prediction)
    # The windows are others, each with all points: the prediction is the same.
    predicted = without.interpolate(known[others], Kernel()).mean[rows[3], columns[3]]
    assert errors[3].item() == pytest.approx((predicted - known[3]).item(), abs=1e-3)
