"""The interpolations that depth completion is compared with, and the table of the comparison."""

from __future__ import annotations

import compare_completion
import numpy as np
import pytest

pytest.importorskip("scipy")
import interpolators

PLANE = np.add.outer(np.arange(24.0), 2 * np.arange(30.0)) / 20 + 1


@pytest.mark.parametrize("name", ["nearest", "linear", "natural_neighbour"])
def test_interpolations_follow_a_plane(name):
    known = np.zeros_like(PLANE)
    chosen = np.random.default_rng(0).choice(PLANE.size, 150, replace=False)
    known.flat[chosen] = PLANE.flat[chosen]
    error = np.abs(getattr(interpolators, name)(known) - PLANE)
    assert error[4:-4, 4:-4].mean() < {"nearest": 0.2, "linear": 1e-6, "natural_neighbour": 0.08}[name]


def test_the_guided_filter_follows_its_guide():
    image = np.zeros((24, 30, 3), np.uint8)
    image[:, 15:] = 200
    truth = np.where(np.arange(30) < 15, 1.0, 3.0) * np.ones((24, 1))
    known = np.where(np.random.default_rng(0).random(truth.shape) < 0.2, truth, 0.0)
    assert np.abs(interpolators.guided_filter(known, image) - truth).mean() < 0.15


def test_the_table_has_means_over_frames(tmp_path):
    rows = [
        {
            "frame": frame, "density": density, "seed": 0, "wrong": 0.0, "method": "completion", "mae": frame + 1.0,
            "rmse": 1.0, "abs_rel": 0.1, "seconds": 2.0, "rank_correlation": 0.5, "within_2_deviations": 0.9,
        }
        for frame in (0, 1)
        for density in (100, 0.05)
    ]  # fmt: skip
    compare_completion.write_table(rows, tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    assert "| | 100 | 5% | AbsRel | RMSE | seconds |" in text
    assert "| completion | 1.500 | 1.500 | 0.100 | 1.000 | 2.00 |" in text
