"""Steady depth: noise averaged along the flow, one scale for a shot, a new start at a cut, constant memory."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.videos import moving_pictures

from depthfm_diffusers import predict_video
from depthfm_diffusers.inference.prediction import PredictionSettings, predict_image
from depthfm_diffusers.inference.video.steady import SteadyPredictor, SteadyState, advance, depth_in_range

SHAPE = (48, 64)


def greys(count, seed=0):
    """Frames of one shot that stands still."""
    return [moving_pictures(1, seed=seed)[0][..., 1]] * count


def noisy_depths(count, noise=0.1, scales=False):
    """A slope with noise in each frame, in the frame's own scale and shift if asked for."""
    rng = np.random.default_rng(0)
    truth = np.add.outer(np.linspace(-1, 1, SHAPE[0]), np.linspace(0, 0.5, SHAPE[1]))
    maps = [truth + noise * rng.normal(size=SHAPE) for _ in range(count)]
    if scales:
        maps = [rng.uniform(0.8, 1.2) * one + rng.uniform(-0.2, 0.2) for one in maps]
    return truth, [one.astype(np.float32) for one in maps]


def run(frames, depths):
    states = [None]
    for grey, depth in zip(frames, depths, strict=True):
        states.append(advance(states[-1], grey, depth))
    return states[1:]


def test_noise_is_averaged_where_nothing_moves():
    truth, depths = noisy_depths(12)
    steady = run(greys(12), depths)[-1].log_depth
    fit = np.polyfit(steady.ravel(), truth.ravel(), 1)
    assert np.std(np.polyval(fit, steady) - truth) < 0.5 * 0.1


def test_all_frames_have_the_scale_of_the_first():
    _, depths = noisy_depths(10, noise=0.01, scales=True)
    for state in run(greys(10), depths):
        scale, shift = np.polyfit(depths[0].ravel(), state.log_depth.ravel(), 1)
        assert (scale, shift) == (pytest.approx(1, abs=0.03), pytest.approx(0, abs=0.03))


def test_a_cut_begins_anew():
    _, depths = noisy_depths(6, scales=True)
    states = run([*greys(3), *greys(3, seed=7)], depths)
    assert [state.shot for state in states] == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(states[3].log_depth, depths[3])
    assert (states[3].low, states[3].high) == tuple(np.quantile(depths[3], (0.005, 0.995)))


def test_what_is_new_in_the_picture_keeps_its_own_depth():
    _, depths = noisy_depths(2, noise=0)
    depths[1] = depths[1].copy()
    depths[1][10:20, 10:20] -= 3
    assert run(greys(2), depths)[1].log_depth[10:20, 10:20] == pytest.approx(depths[1][10:20, 10:20], abs=0.05)


def test_the_range_of_a_shot_only_grows():
    _, depths = noisy_depths(8, noise=0.3)
    states = run(greys(8), depths)
    assert all(b.low <= a.low and b.high >= a.high for a, b in pairwise(states))


def test_a_frame_of_another_size():
    _, depths = noisy_depths(1)
    with pytest.raises(ValueError, match="frame 1 is processed at 60×40, those before at 64×48"):
        advance(run(greys(1), depths)[0], np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.float32))


def test_depth_in_range():
    log_depth = np.log(np.array([[1, 2, 3, 4]], np.float32))
    depth = depth_in_range(log_depth, float(np.log(2)), float(np.log(4)))
    np.testing.assert_allclose(depth, [[0, 0, 0.5, 1]], atol=1e-6)
    assert not depth_in_range(log_depth, 1.0, 1.0).any()


def test_the_first_frame_is_that_of_a_single_image(pipe):
    picture = moving_pictures(1)[0]
    (frame,) = predict_video(pipe, [picture])
    alone = predict_image(pipe, picture)
    np.testing.assert_array_equal(frame.log_depth, alone.log_depth)
    assert (frame.depth.min(), frame.depth.max(), frame.shot) == (0, 1, 0)


def test_frames_are_read_as_results_are_asked_for(pipe):
    read = []

    def frames():
        for number, picture in enumerate(moving_pictures(3, 47, 63)):
            read.append(number)
            yield picture

    results = predict_video(pipe, frames(), PredictionSettings(num_inference_steps=1))
    assert read == []
    assert next(results).log_depth.shape == (47, 63)
    assert read == [0]
    assert len(list(results)) == 2


def test_frames_that_cannot_be_used(pipe):
    for frames, match in (
        ([np.zeros((2, 48, 64, 3), np.uint8)], "each must be one image, got 2"),
        ([np.zeros((48, 64, 3), np.uint8), np.zeros((64, 48, 3), np.uint8)], "All frames must have one size"),
    ):
        with pytest.raises(ValueError, match=match):
            list(predict_video(pipe, frames))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory from Linux")
def test_memory_is_the_same_after_1000_frames_as_after_100(pipe):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    frames = (picture for _ in range(50) for picture in moving_pictures(20))
    sizes = [resident() for _ in predict_video(pipe, frames, PredictionSettings(num_inference_steps=1))]
    assert len(sizes) == 1000
    assert sizes[-1] - sizes[99] < 10


def test_a_state_that_was_stored_goes_on_to_the_same_bit(pipe):
    pictures, settings = moving_pictures(4), PredictionSettings(num_inference_steps=1)
    whole = SteadyPredictor(pipe, settings)
    maps = [whole.predict(picture).log_depth for picture in pictures]
    first = SteadyPredictor(pipe, settings)
    for picture in pictures[:2]:
        first.predict(picture)
    second = SteadyPredictor(pipe, settings, SteadyState.from_arrays(first.state.arrays()))
    for picture, expected in zip(pictures[2:], maps[2:], strict=True):
        np.testing.assert_array_equal(second.predict(picture).log_depth, expected)
    assert second.state.number == 4
