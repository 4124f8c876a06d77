"""Metres from log depth: exact, robust, in all forms of maps; and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from depthfm_diffusers.geometry import intrinsics_from_fov, unproject
from depthfm_diffusers.metric import METRIC_SPACES, MetricFit, fit_depth_map, fit_points, plane_depth

# A map of 4×5 pixels whose log depth is different everywhere.
Y = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)
FITS = {"log": (0.8, 1.1), "depth": (0.9, 0.3), "disparity": (0.4, 0.1)}


def truth(space: str) -> np.ndarray:
    a, b = FITS[space]
    y = Y.astype(np.float64)
    return {"log": np.exp(a * y + b), "depth": a * np.exp(y) + b, "disparity": 1 / (a * np.exp(-y) + b)}[space]


def points_of(metres: np.ndarray, pixels: list[tuple[int, int]]) -> list[tuple[float, float, float]]:
    return [(x, row, metres[row, x]) for x, row in pixels]


@pytest.mark.parametrize("space", METRIC_SPACES)
def test_two_points_give_the_metres_of_all(space):
    metres = truth(space)
    fit = fit_points(Y, points_of(metres, [(0, 0), (3, 2)]), space)
    assert (fit.a, fit.b) == pytest.approx(FITS[space])
    assert (fit.space, fit.points, fit.inliers) == (space, 2, 2)
    assert fit.median_relative_error < 1e-9
    np.testing.assert_allclose(fit.apply(Y), metres, rtol=1e-5)


@pytest.mark.parametrize("space", METRIC_SPACES)
def test_a_depth_map_with_unknown_and_wrong_pixels(space):
    metres = truth(space)
    known = metres.copy()
    known[0, :3] = 0, np.nan, np.inf
    known[3, 3:] = 0.2
    fit = fit_depth_map(Y, known, space=space)
    assert (fit.a, fit.b) == pytest.approx(FITS[space])
    assert (fit.points, fit.inliers) == (17, 15)
    np.testing.assert_allclose(fit.apply(Y), metres, rtol=1e-5)


def test_only_valid_pixels_count():
    metres = truth("log")
    valid = np.zeros(Y.shape, dtype=bool)
    valid[1:3] = True
    wrong = np.where(valid, metres, 9.0)
    assert fit_depth_map(Y, wrong, valid).points == 10
    assert fit_depth_map(torch.from_numpy(Y), torch.from_numpy(wrong), torch.from_numpy(valid)).a == pytest.approx(0.8)


@pytest.mark.parametrize(
    "log_depth",
    [
        Y,
        Y[..., None],
        Y[None, ..., None],
        *(torch.from_numpy(Y).reshape(n) for n in ((4, 5), (1, 4, 5), (1, 1, 4, 5))),
    ],
    ids=["np 2", "np 3", "np 4", "pt 2", "pt 3", "pt 4"],
)
def test_maps_as_pipelines_return_them(log_depth):
    fit = fit_points(log_depth, points_of(truth("log"), [(4, 0), (1, 3)]))
    metres = fit.apply(log_depth)
    assert type(metres) is type(log_depth)
    assert metres.shape == log_depth.shape
    assert metres.dtype in (np.float32, torch.float32)
    np.testing.assert_allclose(np.asarray(metres).reshape(4, 5), truth("log"), rtol=1e-5)


def test_half_precision_tensors():
    fit = fit_points(torch.from_numpy(Y).bfloat16(), [(0, 0, 1.0), (4, 3, 5.0)])
    assert fit.apply(torch.from_numpy(Y).bfloat16()).dtype == torch.float32


def test_positions_are_rounded_to_pixels():
    assert fit_points(Y, [(0.4, -0.5, 1), (4.49, 3.4, 5)]) == fit_points(Y, [(0, 0, 1), (4, 3, 5)])


def test_the_covered_range():
    assert fit_points(Y, [(0, 0, 1), (4, 3, 5)]).range_covered == 1
    row = fit_points(Y, [(0, 1, 1), (4, 1, 5)])
    assert row.range_covered == pytest.approx((Y[1, 4] - Y[1, 0]) / (2 * 0.96), abs=1e-3)


@pytest.mark.parametrize("space", METRIC_SPACES)
def test_metres_are_positive_and_finite(space):
    fit = MetricFit(a=1.0, b=-9.0, space=space, points=2, inliers=2, median_relative_error=0.0, range_covered=1.0)
    metres = fit.apply(Y)
    assert (metres >= np.float32(1e-3)).all()
    assert (metres <= 1000).all()


def test_one_point_needs_an_assumption():
    with pytest.raises(ValueError, match="second point at another depth, or `range_ratio`"):
        fit_points(Y, [(2, 2, 3.0)])
    metres = fit_points(Y, [(2, 2, 3.0)], range_ratio=5).apply(Y)
    assert metres[2, 2] == pytest.approx(3)
    near, far = np.quantile(metres.astype(np.float64), (0.02, 0.98))
    assert far / near == pytest.approx(5, rel=0.02)


def test_the_floor_of_a_tilted_camera():
    pitch, intrinsics = math.radians(20), intrinsics_from_fov(60, 30, 40)
    depth = plane_depth((30, 40), intrinsics, 1.5, (0, math.cos(pitch), math.sin(pitch)))
    points = unproject(torch.from_numpy(depth)[None, None].double(), intrinsics)[0].numpy()
    below = math.cos(pitch) * points[1] + math.sin(pitch) * points[2]
    np.testing.assert_allclose(below[depth > 0], 1.5, rtol=1e-6)
    assert depth[0, 20] == 0, "the first row looks above the horizon"
    y = np.where(depth > 0, (np.log(np.maximum(depth, 1e-3)) - 0.4) / 1.3, 2.0)
    fit = fit_depth_map(y, depth)
    assert (fit.a, fit.b) == pytest.approx((1.3, 0.4), rel=1e-4)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "at least one point"),
        ([(1, 2)], "N×3"),
        ([(5, 0, 1), (0, 0, 2)], "x=5, y=0 with 1 m is outside the map of 5×4 pixels"),
        ([(0, -1, 1), (0, 0, 2)], "y=-1 with 1 m is outside"),
        ([(math.nan, 0, 1), (0, 0, 2)], "is outside"),
        ([(0, 0, 0), (1, 1, 2)], "x=0, y=0 with 0 m has a depth that is not positive"),
        ([(0, 0, math.inf), (1, 1, 2)], "not positive and finite"),
        ([(0, 0, math.nan), (1, 1, 2)], "not positive and finite"),
        ([(1, 1, 1), (1, 1, 2)], "the same at all 2 known points"),
        ([(0, 0, 5), (4, 3, 1)], "does not grow with the known depth"),
        ([(0, 0, 5), (2, 1, 4), (2, 2, 3), (4, 3, 1)], "of the 4 known points"),
        ([(0, 0, 2), (4, 3, 2)], "does not grow with the known depth"),
    ],
)
def test_points_that_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        fit_points(Y, points)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.full((4, 5), 1000, dtype=np.uint16), "integers are usually millimetres, which times 0.001"),
        (np.ones((5, 4)), "must have the size of `log_depth`"),
        (-np.ones((4, 5)), "negative"),
        (np.zeros((4, 5)), "0 known pixel"),
        (np.ones((2, 4, 5, 1)), "must be one map"),
    ],
)
def test_depth_maps_that_are_refused(depth, message):
    with pytest.raises(ValueError, match=message):
        fit_depth_map(Y, depth)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "none"}, "`space` must be one of"),
        ({"range_ratio": 4}, "`range_ratio` is for a single point"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fit_points(Y, [(0, 0, 1), (4, 3, 5)], **settings)


def test_one_point_that_is_refused():
    for settings in ({"range_ratio": 1}, {"range_ratio": 3, "space": "depth"}):
        with pytest.raises(ValueError, match="range_ratio"):
            fit_points(Y, [(0, 0, 1)], **settings)
    with pytest.raises(ValueError, match="constant"):
        fit_points(np.zeros((4, 5)), [(0, 0, 1)], range_ratio=3)


def test_a_map_that_is_not_finite_at_a_point():
    y = Y.copy()
    y[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite values at the known points"):
        fit_points(y, [(0, 0, 1), (4, 3, 5)])


def test_the_mask_is_boolean():
    with pytest.raises(ValueError, match="`valid` must be boolean"):
        fit_depth_map(Y, truth("log"), np.ones((4, 5)))


def test_millimetres_are_suspected(caplog):
    fit_points(Y, [(0, 0, 1000), (4, 3, 5000)])
    assert "multiply them by 0.001" in caplog.text


@pytest.mark.parametrize(("distance", "normal"), [(0, (0, 1, 0)), (math.nan, (0, 1, 0)), (1, (0, 0, 0))])
def test_planes_that_are_refused(distance, normal):
    with pytest.raises(ValueError, match="`distance` must be positive"):
        plane_depth((3, 4), np.eye(3), distance, normal)
