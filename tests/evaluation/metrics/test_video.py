"""Steadiness of a clip's depth: the temporal alignment error by known poses, and flicker."""

from __future__ import annotations

import numpy as np
import pytest

from depthfm_diffusers.evaluation.metrics.video import align_clip, flicker, temporal_alignment_error

HEIGHT, WIDTH = 12, 16
CAMERA = np.array([[20.0, 0, (WIDTH - 1) / 2], [0, 20.0, (HEIGHT - 1) / 2], [0, 0, 1]])


def poses(*positions):
    result = np.tile(np.eye(4), (len(positions), 1, 1))
    result[:, :3, 3] = positions
    return result


def wall(*distances):
    """A wall before each of the cameras."""
    depth = np.ones((len(distances), HEIGHT, WIDTH)) * np.array(distances, dtype=float)[:, None, None]
    return depth, np.ones(depth.shape, dtype=bool)


@pytest.mark.parametrize("moves", [[(0, 0, 0), (0.5, 0, 0), (1, 0.2, 0)], [(0, 0, 0), (0, 0, 1), (0.3, 0, 2)]])
def test_true_depth_of_a_wall_has_no_error(moves):
    depth, valid = wall(*(10 - move[2] for move in moves))
    assert temporal_alignment_error(depth, valid, poses(*moves), CAMERA) == pytest.approx(0, abs=1e-10)


def test_the_error_of_a_flickering_wall_by_hand():
    depth, valid = wall(10, 11)
    still = poses((0, 0, 0), (0, 0, 0))
    expected = 100 * (1 / 11 + 1 / 10) / 2
    assert temporal_alignment_error(depth, valid, still, CAMERA) == pytest.approx(expected)


def test_it_is_that_of_video_depth_anything_where_no_two_points_meet():
    """The formula of its `tae_torch`, for cameras that turn."""
    depth, valid = wall(10, 10.7)
    angle = 0.05
    turned = poses((0, 0, 0), (0.3, 0.1, 0.2))
    turned[1, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    errors = []
    for one, other in ((0, 1), (1, 0)):
        move = np.linalg.inv(turned[other]) @ turned[one]
        moved = np.zeros((HEIGHT, WIDTH))
        for v in range(HEIGHT):
            for u in range(WIDTH):
                point = np.array([(u - CAMERA[0, 2]) / 20, (v - CAMERA[1, 2]) / 20, 1]) * depth[one, v, u]
                x, y, z = move[:3, :3] @ point + move[:3, 3]
                column, row = round(20 * x / z + CAMERA[0, 2]), round(20 * y / z + CAMERA[1, 2])
                if 0 <= column < WIDTH and 0 <= row < HEIGHT:
                    moved[row, column] = z if not moved[row, column] else min(z, moved[row, column])
        errors.append(np.mean((np.abs(depth[other] - moved) / depth[other])[moved > 0]))
    assert temporal_alignment_error(depth, valid, turned, CAMERA) == pytest.approx(100 * np.mean(errors))


def test_invalid_pixels_are_neither_moved_nor_compared():
    depth, valid = wall(10, 10)
    depth[0, :3], valid[0, :3] = 99, False
    depth[1, 5], valid[1, 5] = np.nan, False
    assert temporal_alignment_error(depth, valid, poses((0, 0, 0), (0, 0, 0)), CAMERA) == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d, v, p: (d[:1], v[:1], p[:1]), "at least 2 frames"),
        (lambda d, v, p: (d, v, p[:1]), "must be 2×4×4"),
        (lambda d, v, p: (d, v[:, :, 1:], p), "one shape"),
        (lambda d, v, p: (d, v, poses((0, 0, 0), (500, 0, 0))), "no frame sees"),
    ],
)
def test_what_does_not_fit(change, match):
    depth, valid = wall(10, 10)
    with pytest.raises(ValueError, match=match):
        temporal_alignment_error(*change(depth, valid, poses((0, 0, 0), (0, 0, 0))), CAMERA)


def test_flicker_by_hand():
    truth, valid = wall(10, 5, 5)
    factor = np.array([1, np.e**0.1, np.e**0.1])[:, None, None]
    assert flicker(2 * factor * truth, truth, valid) == pytest.approx(5)
    assert flicker(2 * truth, truth, valid) == pytest.approx(0)
    valid[1] = False
    valid[1, 0, 0] = True
    assert flicker(2 * factor * truth, truth, valid) == pytest.approx(5)
    valid[0, 0, 0] = valid[2, 0, 0] = False
    with pytest.raises(ValueError, match="no pixel in two frames"):
        flicker(truth, truth, valid)


def test_a_clip_has_one_scale_and_one_shift():
    truth = np.exp(np.random.default_rng(0).normal(size=(3, 4, 5)))
    valid = np.ones(truth.shape, dtype=bool)
    aligned = align_clip(3 * np.log(truth) - 1, truth, valid, "log")
    np.testing.assert_allclose(aligned.depth, truth)
    assert (aligned.scale, aligned.shift) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    of_frame = np.log(truth) + np.array([0, 1, 2])[:, None, None]
    assert not np.allclose(align_clip(of_frame, truth, valid, "log").depth, truth, rtol=0.1)
