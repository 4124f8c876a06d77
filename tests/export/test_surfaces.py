"""Points and triangles of depth maps: where the renderer put them, and none across a jump."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.shards import sloping_frame, write_shard
from helpers.solids import Camera, window
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depthfm_diffusers.export.surfaces import Surface, SurfaceSettings, depth_surface, flying_pixels, known_depth
from depthfm_diffusers.frames import SourceConfig, open_source
from depthfm_diffusers.geometry import unproject

SHARP = SurfaceSettings(edge_width=0)
CAMERA = Camera()
# A floor, a wall behind it and a ball on the floor.
ROOM = CAMERA.see(CAMERA.plane((0, -1, 0), 1.2), CAMERA.plane((0, 0, -1), 8.0), CAMERA.sphere((0.3, 0.5, 3.0), 0.6))


def solids_of(surface: Surface, solid: np.ndarray) -> np.ndarray:
    """The solid that each corner of each triangle is on, M×3."""
    return solid[surface.pixels[:, 0], surface.pixels[:, 1]][surface.faces]


def test_points_are_where_the_renderer_put_them(tmp_path):
    """A shard's metadata has the camera; the points project back onto their pixels, at their depth."""
    shard = write_shard(tmp_path / "frames.tar", [sloping_frame(0)])
    frame = open_source(SourceConfig(str(shard)))[0]
    surface = depth_surface(frame.depth, frame.intrinsics, settings=SHARP)
    assert len(surface.points) == (frame.depth > 0).sum(), "the strip of sky is left out"
    projected = surface.points @ frame.intrinsics.T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], surface.pixels[:, ::-1], atol=1e-3)
    np.testing.assert_array_equal(surface.points[:, 2], frame.depth[frame.depth > 0])
    expected = unproject(torch.from_numpy(frame.depth)[None, None], torch.from_numpy(frame.intrinsics))[0]
    np.testing.assert_allclose(surface.points, expected[:, frame.depth > 0].T.numpy(), rtol=1e-5, atol=1e-6)


def test_points_lie_on_the_solids():
    surface = depth_surface(ROOM.depth, ROOM.intrinsics, settings=SHARP)
    solid = ROOM.solid[surface.pixels[:, 0], surface.pixels[:, 1]]
    points = surface.points
    np.testing.assert_allclose(points[solid == 0][:, 1], 1.2, rtol=1e-5)
    np.testing.assert_allclose(points[solid == 1][:, 2], 8.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(points[solid == 2] - (0.3, 0.5, 3.0), axis=1), 0.6, rtol=1e-5)


def test_triangles_face_the_camera_and_cover_a_plane_without_a_gap():
    view = CAMERA.see(CAMERA.plane((0.5, 0.5, -1), 2.0))
    surface = depth_surface(view.depth, view.intrinsics, settings=SHARP)
    assert len(surface.faces) == 2 * 47 * 63
    first, second, third = surface.points[surface.faces].transpose(1, 0, 2)
    normals = np.cross(second - first, third - first)
    assert ((normals * first).sum(1) < 0).all()
    corners = surface.pixels[surface.faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    assert abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() == len(surface.faces), "each has half a pixel"


SLANT = st.tuples(st.floats(-0.7, 0.7), st.floats(-0.7, 0.7))


@settings(max_examples=60, deadline=None)
@given(
    near=SLANT,
    far=SLANT,
    gap=st.floats(0.1, 4.0),
    box=st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(0, 50), st.integers(1, 50)),
)
def test_no_face_crosses_a_jump(near, far, gap, box):
    """Two slanted planes of any size, one in front of the other by at least 10 % everywhere along their edge."""
    top, height, left, width = box
    cut = window(CAMERA.plane((*near, -1), 1.0), slice(top, top + height), slice(left, left + width))
    behind, normals = CAMERA.plane((*far, -1), 1.0)
    front = np.where(np.isfinite(cut[0]), cut[0], 0)
    assume((behind < 50).all())
    behind = behind * (front / behind).max() * (1 + gap)
    view = CAMERA.see(cut, (behind, normals))
    surface = depth_surface(view.depth, view.intrinsics, settings=SHARP)
    corners = solids_of(surface, view.solid)
    assert (corners == corners[:, :1]).all()


def test_a_room_is_cut_where_it_must_be_and_nowhere_else():
    surface = depth_surface(ROOM.depth, ROOM.intrinsics, settings=SHARP)
    corners = solids_of(surface, ROOM.solid)
    ball = (corners == 2).any(1)
    behind_the_ball = ball & (corners == 1).any(1)
    assert not behind_the_ball.any()
    floor_to_wall = (corners == 0).any(1) & (corners == 1).any(1)
    assert floor_to_wall.sum() > 70, "they touch"
    whole = (corners == 0).all(1).sum(), (corners == 1).all(1).sum()
    assert min(whole) > 500


def test_a_steep_floor_is_no_jump_and_the_angle_cuts_it():
    """Neighbouring rows far off differ by more than the tolerance."""
    view = CAMERA.see(CAMERA.plane((0, -1, 0), 1.0))
    rows = view.depth[:, 0][view.depth[:, 0] > 0]
    assert (rows[0] / rows[1]) > 1.5
    limits = (90.0, 80.0, 70.0)
    counts = [
        len(depth_surface(view.depth, view.intrinsics, settings=replace(SHARP, max_angle=limit)).faces)
        for limit in limits
    ]
    assert counts[0] == 2 * 63 * (len(rows) - 1)
    assert counts[0] > counts[1] > counts[2] > 0
    steep = depth_surface(view.depth, view.intrinsics, settings=replace(SHARP, max_angle=70.0))
    used = steep.points[np.unique(steep.faces)]
    assert (np.linalg.norm(used, axis=1) < 1.1 / np.cos(np.radians(70))).all()


def blurred(depth: np.ndarray, width: int) -> np.ndarray:
    """A map whose edges are ramps in log depth, as predictions have them."""
    kernel = np.ones(width) / width
    padded = np.pad(np.log(depth), width // 2, mode="edge")
    rows = np.apply_along_axis(np.convolve, 1, padded, kernel, "valid")
    return np.exp(np.apply_along_axis(np.convolve, 0, rows, kernel, "valid"))


def test_flying_pixels_of_a_blurred_edge_are_found_and_slanted_surfaces_are_kept():
    view = CAMERA.see(
        window(CAMERA.plane((0.2, 0, -1), 1.5), slice(14, 34), slice(20, 40)), CAMERA.plane((0, -0.5, -1), 4)
    )
    depth = blurred(view.depth, 5)
    found = flying_pixels(depth, known_depth(depth), SurfaceSettings(edge_width=0.1))
    near, far = view.depth[14:34, 20:40].max(), view.depth[view.solid == 1].min()
    between = (depth > near * 1.15) & (depth < far / 1.15)
    assert between.sum() > 100
    assert found[between].mean() > 0.95
    assert found[~between].mean() < 0.06
    plane = CAMERA.see(CAMERA.plane((0.7, 0.6, -1), 4))
    assert not flying_pixels(plane.depth, known_depth(plane.depth), SurfaceSettings(edge_width=0.1)).any()


def test_a_thin_thing_in_front_does_not_fly():
    view = CAMERA.see(window(CAMERA.plane((0, 0, -1), 1.0), slice(None), slice(30, 32)), CAMERA.plane((0, 0, -1), 3.0))
    assert not flying_pixels(view.depth, known_depth(view.depth), SurfaceSettings(edge_width=0.15)).any()


def test_mask_sky_and_far_points_are_left_out():
    mask = np.ones(ROOM.depth.shape, dtype=bool)
    mask[:, 32:] = False
    surface = depth_surface(ROOM.depth, ROOM.intrinsics, mask, replace(SHARP, max_depth=5.0))
    assert surface.pixels[:, 1].max() == 31
    assert surface.points[:, 2].max() <= 5.0
    assert set(ROOM.solid[surface.pixels[:, 0], surface.pixels[:, 1]]) == {0, 2}


def test_values_that_are_no_depth_are_left_out():
    depth = np.full((6, 8), 2.0)
    depth[0, :4] = (0, -1, np.nan, np.inf)
    with np.errstate(all="raise"):
        surface = depth_surface(depth, CAMERA.intrinsics)
    assert len(surface.points) == 44
    assert np.isfinite(surface.points).all()
    assert surface.faces.max() < 44


def test_large_maps_are_thinned_out():
    surface = depth_surface(np.full((50, 70), 2.0), CAMERA.intrinsics, settings=SurfaceSettings(max_points=1000))
    assert len(surface.points) == 25 * 35
    assert (surface.pixels % 2 == 0).all()
    assert surface.shape == (50, 70)
    rows = (surface.pixels[:, 0] - CAMERA.intrinsics[1, 2]) / CAMERA.intrinsics[1, 1] * 2
    np.testing.assert_allclose(surface.points[:, 1], rows, rtol=1e-6)


def test_one_pixel_is_a_point_without_triangles():
    surface = depth_surface(np.array([[2.0]]), np.eye(3))
    assert surface.points.tolist() == [[0, 0, 2]]
    assert surface.faces.shape == (0, 3)
    assert len(surface.without_lone_points().points) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.zeros((4, 5), dtype=bool)}, "no point is left of the depth map of 5 x 4 pixels"),
        ({"depth": np.full((4, 5), -1.0)}, "no point is left"),
        ({"depth": np.full((4, 5), np.nan)}, "no point is left"),
        ({"settings": SurfaceSettings(max_depth=0.5)}, "no point is left"),
        ({"mask": np.ones((5, 4), dtype=bool)}, r"`mask` must be bool of the depth's shape \(4, 5\)"),
        ({"mask": np.ones((4, 5))}, "`mask` must be bool"),
        ({"depth": np.ones((1, 4, 5))}, "`depth` must be one map of floats, H×W"),
        ({"depth": np.ones((4, 5), dtype=int)}, "`depth` must be one map of floats"),
        ({"intrinsics": np.eye(4)}, "`intrinsics` must be 3×3"),
        ({"intrinsics": np.diag([0.0, 1, 1])}, "positive focal lengths"),
        ({"intrinsics": np.full((3, 3), np.nan)}, "`intrinsics` must be 3×3 and finite"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        depth_surface(**{"depth": np.ones((4, 5)), "intrinsics": np.eye(3)} | arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tolerance", 0.0),
        ("tolerance", float("nan")),
        ("edge_width", -0.1),
        ("edge_width", 2.0),
        ("max_angle", 0.0),
        ("max_angle", 91.0),
        ("max_depth", 0.0),
        ("max_depth", float("nan")),
        ("max_points", 0),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        SurfaceSettings(**{name: value})
