"""Benchmarks whose photos have an EXIF orientation."""

from __future__ import annotations

import numpy as np
from helpers.picture_files import orientation
from PIL import Image

from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark


def test_predictions_of_turned_photos_can_be_evaluated(tmp_path):
    """The depth of `predict` is upright; so is the photo that it is compared with."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("images", "depth"):
        (tmp_path / name).mkdir()
    for number in range(2):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png", exif=orientation(6))
        np.save(tmp_path / "depth" / f"{number}.npy", np.linspace(1, 2, 64 * 48, dtype=np.float32).reshape(64, 48))
    data = open_benchmark(load_benchmark("pairs"), tmp_path)
    assert np.array_equal(data.read(0)[0], np.rot90(pixels, -1))
