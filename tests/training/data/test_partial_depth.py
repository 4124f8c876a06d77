"""Simulated partial depth: what each pattern keeps, errors of sensors, and samples that a resumed run draws again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.depth_normalization import normalize_log_depth
from depthfm_diffusers.partial_depth import normalize_between
from depthfm_diffusers.training.data.partial_depth import (
    LINES,
    OUTLIERS,
    PATTERNS,
    CompletionSamples,
    add_noise,
    add_outliers,
    focal_length,
    lidar_lines,
    missing_edges,
    random_points,
    simulate_points,
)

SEEDS = st.integers(0, 2**63 - 1)


def depth_map(seed: int, hole_share: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(8, 60, 2)
    depth = np.exp(rng.uniform(0, 1) + np.linspace(0, 2, width) * rng.random((height, 1)))
    return np.where(rng.random(depth.shape) < hole_share, 0, depth).astype(np.float32)


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=25)
@given(seed=SEEDS)
def test_patterns_keep_a_part_of_what_is_known_and_repeat(name, seed):
    depth = depth_map(seed)
    known = depth > 0
    first, again = (PATTERNS[name](known, depth, 50.0, np.random.default_rng(seed)) for _ in range(2))
    assert first.dtype == bool
    assert np.array_equal(first, again)
    assert not (first & ~known).any()
    low, high = {"border": (0.05, 1), "mask": (0.05, 0.8)}.get(name, (0, 1))
    assert low * known.sum() <= first.sum() <= high * known.size
    assert (depth > 0).sum() == known.sum(), "the input is left as it is"


@given(SEEDS)
def test_the_number_of_points_is_in_the_range(seed):
    depth = np.ones((100, 200), dtype=np.float32)
    kept = random_points(depth > 0, depth, 50.0, np.random.default_rng(seed)).sum()
    assert 0.0002 * depth.size - 1 <= kept <= 0.05 * depth.size + 1
    few = np.zeros_like(depth)
    few[3, 5] = 1
    assert random_points(few > 0, few, 50.0, np.random.default_rng(seed)).sum() == 1


@settings(max_examples=25)
@given(SEEDS)
def test_scan_lines_are_thin_and_as_many_as_asked_for(seed):
    depth = np.ones((128, 96), dtype=np.float32)
    kept = lidar_lines(depth > 0, depth, 96.0, np.random.default_rng(seed))
    assert kept.sum(axis=0).max() <= LINES[1] + 2
    assert not (kept[1:] & kept[:-1]).any()


def test_edges_are_left_out_and_planes_are_kept():
    plane = np.full((20, 30), 2.0, dtype=np.float32)
    assert missing_edges(plane > 0, plane, 30.0, np.random.default_rng(0)).all()
    step = plane.copy()
    step[:, 15:] = 4.0
    kept = missing_edges(step > 0, step, 30.0, np.random.default_rng(0))
    assert not kept[:, 14:16].any()
    assert kept[:, :10].all()
    assert kept[:, 20:].all()


@given(SEEDS)
def test_sensor_errors_change_known_pixels_alone(seed):
    points = depth_map(seed)
    known = points > 0
    noisy = add_noise(points, np.random.default_rng(seed))
    assert np.array_equal(noisy > 0, known)
    assert (np.abs(np.log(noisy[known] / points[known])) <= math.log(2) + 1e-5).all()
    wrong = add_outliers(points, np.random.default_rng(seed))
    assert np.array_equal(wrong > 0, known)
    changed = (wrong != points).sum()
    assert changed <= OUTLIERS * known.sum() + 5 * math.sqrt(OUTLIERS * known.sum()) + 1


def test_noise_grows_with_the_depth():
    points = np.repeat([1.0, 4.0], 50_000).astype(np.float32).reshape(2, -1)
    error = add_noise(points, np.random.default_rng(0)) - points
    assert error[1].std() / error[0].std() == pytest.approx(16, rel=0.05)


@given(SEEDS)
def test_something_is_always_known_and_nothing_comes_from_nothing(seed):
    depth = depth_map(seed, hole_share=0.95)
    points = simulate_points(depth, 50.0, np.random.default_rng(seed))
    assert (points > 0).any() == (depth > 0).any()
    assert not (points[depth == 0] > 0).any()
    assert np.array_equal(points, simulate_points(depth, 50.0, np.random.default_rng(seed)))
    assert not simulate_points(np.zeros_like(depth), 50.0, np.random.default_rng(seed)).any()


class Frames:
    """Two samples as `FlowFrames` and `CachedSamples` give them."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = item
        depth = torch.exp(torch.linspace(0, 2, 64 * 48).view(1, 48, 64)) if index == 0 else torch.zeros(1, 48, 64)
        normalized = normalize_log_depth(depth)
        return {
            "depth": depth,
            "depth_map": normalized.values,
            "known": normalized.known,
            "valid": normalized.valid,
            "bounds": torch.tensor([normalized.log_near, normalized.log_far]),
            "intrinsics": torch.full((3, 3), math.nan),
            "depth_latent": torch.zeros(4, 6, 8),
            "completion_seed": torch.tensor(1000 * epoch + index),
        }


def test_samples_are_normalised_by_their_points_and_repeat():
    samples = CompletionSamples(Frames(), dropout=0.0, cell=8)
    assert len(samples) == 2
    seen = []
    for epoch in range(8):
        first, again = samples[epoch, 0], samples[epoch, 0]
        assert all(torch.equal(first[name], again[name]) for name in first if name != "intrinsics")
        assert "depth_latent" not in first, "it is that of another normalisation"
        near, far = first["bounds"].tolist()
        torch.testing.assert_close(first["depth_map"], normalize_between(first["depth"], near, far))
        assert first["partial_depth"].shape == (3, 48, 64)
        seen.append(first["partial_depth"])
    assert not all(torch.equal(seen[0], one) for one in seen[1:])


@pytest.mark.parametrize(("index", "dropout"), [(0, 1.0), (1, 0.0)], ids=["dropped", "no depth"])
def test_a_sample_without_points_is_as_without_completion(index, dropout):
    sample, plain = CompletionSamples(Frames(), dropout, cell=8)[0, index], Frames()[0, index]
    assert not sample["partial_depth"].any()
    for name in ("depth_map", "bounds", "valid"):
        assert torch.equal(sample[name], plain[name])


def test_the_share_of_samples_without_points():
    samples = CompletionSamples(Frames(), dropout=0.25, cell=8)
    without = sum(not samples[epoch, 0]["partial_depth"].any() for epoch in range(200))
    assert 30 <= without <= 70


def test_focal_length_of_an_unknown_camera():
    assert focal_length(torch.full((3, 3), math.nan), torch.zeros(1, 48, 64)) == 64
    assert focal_length(torch.eye(3) * 70, torch.zeros(1, 48, 64)) == 70
