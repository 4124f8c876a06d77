"""Stereo pictures: which way things move, and what fills the holes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from depthfm_diffusers.export.stereo import StereoSettings, anaglyph, side_by_side, stereo_views

RED, BLUE = (200, 10, 10), (10, 10, 200)


def square() -> tuple[np.ndarray, np.ndarray]:
    """A red square, 1 m away, before a blue wall, 10 m away."""
    image = np.tile(np.uint8(BLUE), (30, 100, 1))
    depth = np.full((30, 100), 10.0)
    image[10:20, 40:60], depth[10:20, 40:60] = RED, 1.0
    return image, depth


def test_a_near_thing_is_further_left_for_the_right_eye():
    image, depth = square()
    left, right = stereo_views(image, depth, StereoSettings(max_shift=0.1, screen=0.0))
    for view, first in ((left, 45), (right, 35)):
        np.testing.assert_array_equal(view[10:20, first : first + 20], np.broadcast_to(RED, (10, 20, 3)))
        view[10:20, first : first + 20] = BLUE
        np.testing.assert_array_equal(view, np.broadcast_to(BLUE, view.shape), "the wall fills the holes")


def test_what_is_at_the_screen_does_not_move():
    image, depth = square()
    left, right = stereo_views(image, depth, StereoSettings(max_shift=0.1, screen=1.0))
    for view in (left, right):
        np.testing.assert_array_equal(view[10:20, 40:60], np.broadcast_to(RED, (10, 20, 3)))


def test_a_flat_picture_and_another_unit_change_nothing():
    image, depth = square()
    for one in stereo_views(image, np.full_like(depth, 3.0), StereoSettings(screen=1.0)):
        np.testing.assert_array_equal(one, image)
    for one, other in zip(stereo_views(image, depth), stereo_views(image, 1000 * depth), strict=True):
        np.testing.assert_array_equal(one, other)


def test_both_views_beside_and_over_each_other():
    left, right = np.full((2, 3, 3), 1, np.uint8), np.full((2, 3, 3), 2, np.uint8)
    assert side_by_side(left, right)[0, :, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert anaglyph(left, right)[0, 0].tolist() == [1, 2, 2]


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 40)), elements=st.floats(1e-3, 1e4)),
    st.floats(0.01, 0.25),
)
def test_no_hole_is_left(depth, shift):
    """Every pixel of both views has a colour of the picture: any depth, any size, one pixel too."""
    image = np.full((*depth.shape, 3), 77, dtype=np.uint8)
    for view in stereo_views(image, depth, StereoSettings(max_shift=shift)):
        assert view.dtype == np.uint8
        assert (view == 77).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((30, 100), np.uint8)}, "`image` must be H×W×3 and uint8"),
        ({"image": np.zeros((30, 100, 3))}, "`image` must be H×W×3 and uint8, got float64"),
        ({"depth": np.ones((30, 99))}, r"`depth` must have the size of the image, \(30, 100\)"),
        *[({"depth": np.full((30, 100), value)}, "`depth` must be positive") for value in (0, -1, np.nan, np.inf)],
    ],
)
def test_what_cannot_be_used_is_named(change, message):
    image, depth = square()
    with pytest.raises(ValueError, match=message):
        stereo_views(**{"image": image, "depth": depth} | change)


@pytest.mark.parametrize(
    ("name", "value"), [("max_shift", 0.0), ("max_shift", 0.3), ("screen", -0.1), ("screen", 1.1)]
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be in"):
        StereoSettings(**{name: value})
