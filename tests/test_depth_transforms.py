"""`training/depth_transforms.py`: normalisation and its inverse; augmentations that keep geometry true."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from depth_transforms import (
    AugmentationConfig,
    View,
    augment_view,
    crop_view,
    denormalize_log_depth,
    flip_view,
    frame_to_view,
    normalize_log_depth,
    resize_view,
)
from frames import Frame
from hypothesis import given
from hypothesis import strategies as st

from depthfm_diffusers.geometry import unproject


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


def test_bad_quantiles_are_refused():
    with pytest.raises(ValueError, match="quantiles"):
        normalize_log_depth(torch.ones(1, 2, 2), (0.5, 0.5))


def plane_view(height: int = 40, width: int = 60) -> View:
    """A tilted plane: 1/z is linear in the pixel's position."""
    frame = Frame("k", "s", np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.float32), 70.0)
    view = frame_to_view(frame)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([(x - 29.5) / view.intrinsics[0, 0], (y - 19.5) / view.intrinsics[1, 1]])
    depth = 3 / (1 + 0.3 * rays[0] - 0.4 * rays[1])
    return View(view.image, depth[None], view.intrinsics)


def assert_on_plane(view: View, x_sign: float = 1.0, atol: float = 1e-4) -> None:
    points = unproject(view.depth[None], view.intrinsics[None])[0]
    distance = points[2] + x_sign * 0.3 * points[0] - 0.4 * points[1]
    torch.testing.assert_close(distance, torch.full_like(distance, 3.0), rtol=0, atol=atol)


def test_geometry_survives_crop_flip_and_resize():
    view = plane_view()
    assert_on_plane(view)
    assert_on_plane(crop_view(view, 5, 7, 20, 30))
    assert_on_plane(flip_view(view), x_sign=-1)
    # Nearest neighbour moves a depth by at most half a pixel of the source.
    assert_on_plane(resize_view(crop_view(view, 5, 7, 20, 30), 40, 60), atol=0.05)


def test_augmentation_depends_on_its_generator_alone_and_keeps_ranges():
    view = View(torch.rand(3, 40, 60), plane_view().depth, plane_view().intrinsics)
    config = AugmentationConfig(flip=True, min_crop=0.5, jitter=0.4)
    first, again, other = (augment_view(view, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(first.image, again.image, rtol=0, atol=0)
    assert not torch.equal(first.image, other.image)
    assert first.image.shape == view.image.shape
    assert first.image.min() >= 0
    assert first.image.max() <= 1


def test_augmentation_ranges_are_checked():
    with pytest.raises(ValueError, match="min_crop"):
        AugmentationConfig(min_crop=0.0)
    with pytest.raises(ValueError, match="jitter"):
        AugmentationConfig(jitter=1.0)
