"""`depthfm_diffusers/partial_depth.py`: bounds from points, filling, and the maps that a network takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.depth_normalization import denormalize_log_depth
from depthfm_diffusers.partial_depth import (
    fill_nearest,
    is_known,
    move_points,
    normalize_between,
    partial_depth_maps,
    point_bounds,
)


@st.composite
def sparse_depths(draw) -> torch.Tensor:
    """1×H×W metres with holes of every kind; one pixel at least is known."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    depth = torch.from_numpy(rng.uniform(0.3, 80, (1, height, width)).astype(np.float32))
    holes = torch.from_numpy(rng.random((1, height, width)) < draw(st.floats(0, 1)))
    holes.view(-1)[int(rng.integers(holes.numel()))] = False
    kinds = torch.from_numpy(rng.choice([0.0, -1.0, math.nan, math.inf], (1, height, width)).astype(np.float32))
    return torch.where(holes, kinds, depth)


@given(sparse_depths())
def test_filling_takes_the_nearest_known_pixel(points):
    known = is_known(points)[0]
    filled, distance = fill_nearest(points[0], known)
    rows, columns = (axis.numpy() for axis in known.nonzero(as_tuple=True))
    for y in range(known.shape[0]):
        for x in range(known.shape[1]):
            all_distances = np.hypot(rows - y, columns - x)
            nearest = all_distances.min()
            assert distance[y, x].item() == pytest.approx(nearest, abs=1e-5)
            at = np.flatnonzero(all_distances < nearest + 1e-6)
            assert filled[y, x].item() in {points[0, rows[i], columns[i]].item() for i in at}
    assert torch.equal(filled[known], points[0][known])
    assert (distance[known] == 0).all()


def test_bounds_follow_the_formula():
    depth = torch.exp(torch.linspace(0, 1, 101)).view(1, 1, -1)  # quantiles of the logs: 0.02 and 0.98
    half = 0.96 * (0.6 + 1 / 100)
    assert point_bounds(depth) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    # One point: a factor of two, times 1.6 on each side.
    near, far = point_bounds(torch.tensor([0.0, 2.0, math.nan]))
    assert (near + far) / 2 == pytest.approx(math.log(2))
    assert far - near == pytest.approx(2 * 1.6 * math.log(2))


def test_a_few_wrong_points_hardly_move_the_bounds():
    depth = torch.linspace(1, 4, 1000)
    wrong = depth.clone()
    wrong[::100] = 1000.0
    assert point_bounds(wrong) == pytest.approx(point_bounds(depth), abs=0.05)


@given(sparse_depths(), st.floats(0.01, 100))
def test_bounds_scale_with_the_depth_and_values_do_not(points, factor):
    near, far = point_bounds(points)
    scaled_near, scaled_far = point_bounds(points * factor)
    assert scaled_near - near == pytest.approx(math.log(factor), abs=1e-4)
    assert scaled_far - far == pytest.approx(math.log(factor), abs=1e-4)
    values = normalize_between(points, near, far)
    torch.testing.assert_close(values, normalize_between(points * factor, scaled_near, scaled_far), atol=1e-3, rtol=0)
    known = is_known(points)
    assert (values[~known] == 1).all()
    inside = known & (values.abs() < 1)
    back = denormalize_log_depth(values, torch.tensor(near), torch.tensor(far))
    torch.testing.assert_close(back[inside], points[inside], rtol=1e-4, atol=0)
    assert values.abs().max() <= 1


@given(sparse_depths())
def test_maps_say_what_is_known(points):
    maps = partial_depth_maps(points, point_bounds(points), cell=4)
    assert maps.shape == (3, *points.shape[1:])
    assert torch.equal(maps[2] == 1, is_known(points)[0])
    assert torch.equal(maps[1] == 1, is_known(points)[0])
    assert (maps[1] > 0).all()
    assert maps[0].abs().max() <= 1
    assert torch.isfinite(maps).all()
    assert not partial_depth_maps(points, None, cell=4).any()


def test_nothing_known_is_an_error():
    nothing = torch.tensor([[[0.0, math.nan, -1.0, math.inf]]])
    with pytest.raises(ValueError, match="`points` has no known depth"):
        point_bounds(nothing)
    with pytest.raises(ValueError, match="`known` is false everywhere"):
        fill_nearest(nothing[0], is_known(nothing)[0])


@given(sparse_depths(), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=50)
def test_points_move_unmixed(points, height, width):
    moved = move_points(points, (height, width))
    assert moved.shape == (1, height, width)
    known = is_known(points)
    there = moved[moved != 0]
    assert 1 <= len(there) <= known.sum()
    assert set(there.tolist()) <= set(points[known].tolist())
    if height >= points.shape[1] and width >= points.shape[2]:
        assert len(there) == known.sum()


def test_of_several_points_the_one_nearest_to_the_centre_is_kept():
    points = torch.arange(1.0, 10.0).view(1, 3, 3)
    assert move_points(points, (1, 1)).item() == 5
    assert torch.equal(move_points(points, (3, 3)), points)
