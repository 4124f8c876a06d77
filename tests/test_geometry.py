"""Geometry against closed forms: planes seen at known angles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.geometry import depth_to_normals, intrinsics_from_fov, unproject


def plane_depth(normal: torch.Tensor, distance: float, intrinsics: torch.Tensor, height: int, width: int):
    """Planar depth, 1x1xHxW float64, of the plane n·P = -distance (n unit, facing the camera)."""
    k = intrinsics.double()
    v, u = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    rays = torch.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], torch.ones_like(u)])
    return (-distance / torch.einsum("c,chw->hw", normal, rays))[None, None]


def test_intrinsics_of_a_right_angle():
    """tan(45 degrees) is 1: the focal length is half the width."""
    intrinsics = intrinsics_from_fov(90.0, height=48, width=64)
    expected = torch.tensor([[32.0, 0, 31.5], [0, 32.0, 23.5], [0, 0, 1]])
    torch.testing.assert_close(intrinsics, expected, rtol=1e-6, atol=0)


def test_intrinsics_agree_with_the_scenes_formula():
    focal = intrinsics_from_fov(55.0, height=192, width=256)[0, 0].item()
    assert focal == pytest.approx(128 / math.tan(math.radians(55) / 2), rel=1e-6)


def test_intrinsics_of_a_batch():
    batch = intrinsics_from_fov(torch.tensor([40.0, 90.0]), height=48, width=64)
    assert batch.shape == (2, 3, 3)
    assert torch.equal(batch[1], intrinsics_from_fov(90.0, 48, 64))


@pytest.mark.parametrize("fov", [0.0, 180.0, -3.0, float("nan")])
def test_intrinsics_refuse_impossible_fields_of_view(fov):
    with pytest.raises(ValueError, match="fov_x_deg"):
        intrinsics_from_fov(fov, 4, 4)


def test_unproject_of_the_border_spans_the_field_of_view():
    """Half a pixel beyond the last pixel's centre, the ray is at fov / 2."""
    points = unproject(torch.full((1, 1, 3, 64), 2.0), intrinsics_from_fov(90.0, 3, 64))
    x = points[0, 0, 1]
    assert x[-1].item() + (x[-1] - x[-2]).item() / 2 == pytest.approx(2.0, rel=1e-6)
    torch.testing.assert_close(points[0, 2], torch.full((3, 64), 2.0))
    assert points[0, 1, 0, 0] < 0 < points[0, 1, 2, 0], "y points down"


def test_unproject_half_precision_is_computed_in_float32():
    assert unproject(torch.ones(1, 1, 2, 4096, dtype=torch.float16), torch.eye(3)).dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(
    tilt=st.floats(0, 50),
    azimuth=st.floats(0, 360),
    fov=st.floats(20, 70),
    size=st.tuples(st.integers(2, 12), st.integers(2, 12)),
)
def test_normals_of_planes_are_exact(tilt, azimuth, fov, size):
    """Every pixel, the border included, has the plane's normal (1e-6 in float64)."""
    tilt, azimuth = math.radians(tilt), math.radians(azimuth)
    normal = torch.tensor(
        [math.sin(tilt) * math.cos(azimuth), math.sin(tilt) * math.sin(azimuth), -math.cos(tilt)], dtype=torch.float64
    )
    # Square at most, so that the vertical field of view is no wider than the horizontal one.
    height, width = min(size), max(size)
    intrinsics = intrinsics_from_fov(fov, height, width)
    depth = plane_depth(normal, 3.0, intrinsics, height, width)
    if not (depth > 0).all():  # the plane's horizon is in view
        return
    normals = depth_to_normals(depth, intrinsics[None])
    torch.testing.assert_close(normals, normal.view(1, 3, 1, 1).expand_as(normals), rtol=0, atol=1e-6)


def test_a_wall_seen_head_on_faces_the_camera():
    normals = depth_to_normals(torch.full((2, 1, 5, 7), 4.0), intrinsics_from_fov(60.0, 5, 7))
    torch.testing.assert_close(normals, torch.tensor([0.0, 0, -1]).view(1, 3, 1, 1).expand(2, 3, 5, 7))


def test_rough_surfaces_have_unit_normals_facing_the_camera_at_any_scale():
    torch.manual_seed(0)
    depth = torch.rand(1, 1, 20, 30) * 5 + 0.1
    intrinsics = intrinsics_from_fov(55.0, 20, 30)
    normals = depth_to_normals(depth, intrinsics)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(1, 20, 30))
    assert (normals * unproject(depth, intrinsics)).sum(dim=1).max() < 0
    torch.testing.assert_close(depth_to_normals(depth * 1e-3, intrinsics), normals, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_on_flat_maps_and_at_zero_depth(value):
    depth = torch.full((1, 1, 4, 6), value, requires_grad=True)
    depth_to_normals(depth, intrinsics_from_fov(55.0, 4, 6))[:, 0].sum().backward()
    assert torch.isfinite(depth.grad).all()


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    depth = (torch.rand(1, 1, 3, 4, dtype=torch.float64) + 1).requires_grad_()
    intrinsics = intrinsics_from_fov(60.0, 3, 4)
    assert torch.autograd.gradcheck(lambda d: depth_to_normals(d, intrinsics), depth)


@pytest.mark.parametrize(
    ("depth", "intrinsics", "match"),
    [
        (torch.ones(1, 3, 4, 4), torch.eye(3), "`depth` must be B"),
        (torch.ones(1, 1, 1, 4), torch.eye(3), "at least 2 pixels"),
        (torch.ones(2, 1, 4, 4), torch.eye(3).expand(3, 3, 3), "`intrinsics`"),
        (torch.ones(2, 1, 4, 4), torch.eye(4), "`intrinsics`"),
    ],
)
def test_wrong_shapes_are_named(depth, intrinsics, match):
    with pytest.raises(ValueError, match=match):
        depth_to_normals(depth, intrinsics)
