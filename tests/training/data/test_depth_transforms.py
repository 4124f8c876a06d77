"""`training/data/depth_transforms.py`: augmentations that keep geometry true."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthfm_diffusers.frames import Frame
from depthfm_diffusers.geometry import intrinsics_from_fov, unproject
from depthfm_diffusers.training.data.depth_transforms import (
    AugmentationConfig,
    View,
    augment_view,
    crop_view,
    flip_view,
    frame_to_view,
    resize_view,
)


def plane_view(height: int = 40, width: int = 60) -> View:
    """A tilted plane: 1/z is linear in the pixel's position."""
    intrinsics = intrinsics_from_fov(70.0, height, width).numpy()
    frame = Frame("k", "s", np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.float32), intrinsics)
    view = frame_to_view(frame)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([(x - 29.5) / view.intrinsics[0, 0], (y - 19.5) / view.intrinsics[1, 1]])
    depth = 3 / (1 + 0.3 * rays[0] - 0.4 * rays[1])
    return replace(view, depth=depth[None])


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
    view = replace(plane_view(), image=torch.rand(3, 40, 60))
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


def position_view(height: int, width: int, fov: float = 70.0) -> View:
    """A view whose image holds each pixel's ray (x/z, y/z in 0.5 + ray/4), and whose depth is a tilted plane."""
    intrinsics = intrinsics_from_fov(fov, height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([(x - intrinsics[0, 2]) / intrinsics[0, 0], (y - intrinsics[1, 2]) / intrinsics[1, 1]])
    depth = 3 / (1 + 0.3 * rays[0] - 0.4 * rays[1])
    image = torch.cat([0.5 + rays / 4, depth[None] / 10])
    return View(image, depth[None], intrinsics, (rays[1] < -0.1)[None])


@given(
    st.integers(16, 40),
    st.integers(16, 40),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.tuples(st.floats(0.6, 2.5), st.floats(0.6, 2.5)),
    st.booleans(),
)
def test_every_point_stays_where_it_is_in_space(height, width, crop, scale, flipped):
    """Crop, resize and mirror: what is unprojected is on the plane, its ray the one written into the image.

    Rays to a tenth of a pixel (the image is interpolated with a discrete filter, which moves it by up to a thirtieth),
    away from the border, where the filter is cut off; depth is off by what nearest neighbour moves it: at most half a
    pixel of the crop.
    """
    view = position_view(height, width)
    crop_height, crop_width = 12 + round(crop[0] * (height - 12)), 12 + round(crop[1] * (width - 12))
    top, left = round(crop[2] * (height - crop_height)), round(crop[3] * (width - crop_width))
    size = round(crop_height * scale[0]), round(crop_width * scale[1])
    view = resize_view(crop_view(view, top, left, crop_height, crop_width), *size)
    sign = 1.0
    if flipped:
        view, sign = flip_view(view), -1.0
    assert view.image.shape[-2:] == view.depth.shape[-2:] == view.sky.shape[-2:] == size
    points = unproject(view.depth[None], view.intrinsics[None])[0]
    rays = points[:2] / points[2]
    inner = (slice(None), slice(4, -4), slice(4, -4))
    written = (view.image[:2] - 0.5) * 4 * torch.tensor([sign, 1.0])[:, None, None]
    half_pixel = math.tan(math.radians(35)) / width  # as a ray; pixels are square
    torch.testing.assert_close(rays[inner], written[inner], rtol=0, atol=0.2 * half_pixel)
    exact = 3 / (1 + 0.3 * sign * rays[0] - 0.4 * rays[1])
    slope = exact.square() / 3 * (0.3 + 0.4)
    assert ((view.depth[0] - exact).abs() <= 1.3 * half_pixel * slope).all()
    # The sky's edge too is where it was, within half a pixel.
    clear = (rays[1] + 0.1).abs() > half_pixel * 1.01
    assert torch.equal(view.sky[0][clear], (rays[1] < -0.1)[clear])


@given(st.integers(2, 30), st.integers(2, 30), st.floats(10, 120), st.integers(0, 99))
def test_intrinsics_follow_a_crop_and_a_mirror_twice_is_none(height, width, fov, seed):
    rng = np.random.default_rng(seed)
    view = position_view(height, width, fov)
    top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
    cut = crop_view(view, top, left, height - top, width - left)
    expected = view.intrinsics - torch.tensor([[0, 0, left], [0, 0, top], [0, 0, 0.0]])
    torch.testing.assert_close(cut.intrinsics, expected)
    twice = flip_view(flip_view(cut))
    torch.testing.assert_close(twice.intrinsics, cut.intrinsics)
    assert torch.equal(twice.depth, cut.depth)
    assert torch.equal(twice.sky, cut.sky)
    same = resize_view(cut, height - top, width - left)
    torch.testing.assert_close(same.intrinsics, cut.intrinsics)
    assert torch.equal(same.depth, cut.depth)
    assert torch.equal(same.sky, cut.sky)


@pytest.mark.parametrize("crop", [(0, 0, 41, 10), (-1, 0, 5, 5), (0, 55, 5, 6), (0, 0, 0, 5)])
def test_crop_outside_the_view_is_refused(crop):
    with pytest.raises(ValueError, match="does not lie in a view of 40×60"):
        crop_view(plane_view(), *crop)


def test_frame_without_camera_or_sky_passes_through():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    depth = rng.random((40, 60), dtype=np.float32)
    frame = Frame("k", "s", image, depth, None)
    view = frame_to_view(frame)
    assert view.intrinsics.isnan().all()
    assert view.intrinsics.shape == (3, 3)
    assert view.sky.shape == (1, 40, 60)
    assert not view.sky.any()
    sky = rng.random((40, 60)) < 0.3
    known = replace(frame, intrinsics=intrinsics_from_fov(60.0, 40, 60).numpy(), sky=sky)
    assert torch.equal(frame_to_view(known).sky[0], torch.from_numpy(sky))
    config = AugmentationConfig(flip=True, min_crop=0.5, jitter=0.4)
    for seed in range(4):
        first = augment_view(frame_to_view(frame), config, np.random.default_rng(seed))
        second = augment_view(frame_to_view(known), config, np.random.default_rng(seed))
        # What is known of a frame changes nothing that is drawn.
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.depth, second.depth)
        assert first.intrinsics.isnan().all()
        assert second.intrinsics.isfinite().all()
        assert second.sky.any()


def test_draws_of_the_augmentation_are_pinned():
    """Caches and resumed runs of earlier versions rely on them: 4 for a crop and a mirror, 7 or 8 for colours."""
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    view = augment_view(plane_view(), AugmentationConfig(flip=True, min_crop=0.5), rng)
    share = again.uniform(0.5, 1.0)
    height, width = round(40 * share), round(60 * share)
    top, left = int(again.integers(0, 41 - height)), int(again.integers(0, 61 - width))
    expected = resize_view(crop_view(plane_view(), top, left, height, width), 40, 60)
    if again.random() < 0.5:
        expected = flip_view(expected)
    torch.testing.assert_close(view.depth, expected.depth, rtol=0, atol=0)
    torch.testing.assert_close(view.intrinsics, expected.intrinsics, rtol=0, atol=0)
    augment_view(view, AugmentationConfig(jitter=0.2), rng)
    again.uniform(size=5)
    if not again.random() < 0.1:
        again.uniform()
    again.uniform()
    assert rng.random() == again.random()
