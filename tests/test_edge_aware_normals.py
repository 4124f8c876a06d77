"""Normals that are not smeared over depth jumps, against those of planes and spheres."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.solids import Camera, View, window
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depthfm_diffusers.geometry import depth_to_normals, edge_aware_normals

HALF = (slice(None), slice(0, 30))
SLANT = st.tuples(st.floats(-0.8, 0.8), st.floats(-0.8, 0.8))


def degrees_off(view: View, normals=edge_aware_normals, dtype=torch.float32) -> np.ndarray:
    """Angle between computed and true normals, H×W degrees."""
    depth = torch.from_numpy(view.depth)[None, None].to(dtype)
    found = normals(depth, torch.from_numpy(view.intrinsics))[0].permute(1, 2, 0).double().numpy()
    # By the chord: the arc cosine of nearly 1 loses half of the digits.
    chord = np.linalg.norm(found - view.normals, axis=-1)
    return np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1)))


@settings(max_examples=40, deadline=None)
@given(near=SLANT, far=SLANT, gap=st.floats(0.05, 3.0))
def test_two_planes_have_their_normals_up_to_the_step_between_them(near, far, gap):
    camera = Camera()
    front = window(camera.plane((*near, -1), 2.0), *HALF)
    behind = camera.plane((*far, -1), 2.0)
    view = camera.see(front, (behind[0] * (1 + gap), behind[1]))
    edge = view.depth[:, 29:31]
    assume((view.solid[:, :30] == 0).all())
    assume((view.solid[:, 30:] == 1).all())
    assume((edge.max(1) / edge.min(1) > 1.05).all())
    assert degrees_off(view, dtype=torch.float64).max() < 0.01


@pytest.mark.parametrize("fov", [30.0, 60.0, 90.0])
def test_spheres_before_a_slanted_wall(fov):
    """Within 1 degree except where the sphere turns away, and on the wall up to the sphere's outline."""
    camera = Camera(96, 128, fov)
    radius = 1.2 * np.tan(np.radians(fov / 2))
    view = camera.see(camera.sphere((0.1, -0.05, 3.0), radius), camera.plane((0.4, 0.2, -1), 6.0))
    off = degrees_off(view)
    sphere = view.solid == 0
    assert sphere.sum() > 500
    assert off[sphere & (view.facing() > 0.5)].max() < 1
    assert off[~sphere].max() < 1
    smeared = degrees_off(view, depth_to_normals)
    assert (smeared[~sphere] > 10).sum() > 50, "what central differences do at the outline"


def test_a_thing_two_pixels_wide():
    camera = Camera()
    view = camera.see(window(camera.plane((0.1, 0, -1), 1.0), slice(None), slice(20, 22)), camera.plane((0, 0, -1), 3))
    assert degrees_off(view).max() < 0.1


def test_pixels_without_depth_have_no_normal_and_do_not_disturb_others():
    camera = Camera()
    view = camera.see(camera.plane((0.3, -0.4, -1), 2.0))
    clean = view.depth.copy()
    for value, row in ((0.0, 5), (-1.0, 15), (np.nan, 25), (np.inf, 35)):
        view.depth[row, 10:20] = value
    hole = ~(np.isfinite(view.depth) & (view.depth > 0))
    depth = torch.from_numpy(view.depth)[None, None]
    found = edge_aware_normals(depth, torch.from_numpy(view.intrinsics))[0].permute(1, 2, 0).numpy()
    assert (found[hole] == 0).all()
    np.testing.assert_allclose(found[~hole], view.normals[~hole], atol=1e-9)
    assert np.isfinite(clean).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1)])
def test_a_line_of_pixels_has_no_normals(shape):
    assert (edge_aware_normals(torch.ones(1, 1, *shape), torch.eye(3)) == 0).all()


def test_a_batch_has_a_camera_for_each_map():
    camera = Camera()
    view = camera.see(camera.plane((0.2, 0.1, -1), 2.0))
    depth = torch.from_numpy(view.depth)[None, None].expand(2, -1, -1, -1)
    other = torch.from_numpy(Camera(fov=40.0).intrinsics)
    both = edge_aware_normals(depth, torch.stack([torch.from_numpy(view.intrinsics), other]))
    assert torch.equal(both[1:], edge_aware_normals(depth[1:], other))
    assert not torch.equal(both[0], both[1])


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="`depth` must be B"):
        edge_aware_normals(torch.ones(4, 4), torch.eye(3))
