"""Upper bounds: the true depth through normalisation, autoencoder and output convention."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthfm_diffusers.depth_normalization import NORMALIZATIONS, normalize_log_depth
from depthfm_diffusers.evaluation.runs.upper_bounds import UPPER_BOUNDS, upper_bound_spaces, fill_holes, true_log_depths
from depthfm_diffusers.inference.prediction import PredictionSettings
from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import Sample
from depthfm_diffusers.evaluation.runs.scoring import EvaluationSettings, Protocol, score_upper_bounds


def protocol_for(pipe, processing_resolution: int | None = None, **settings) -> Protocol:
    prediction = PredictionSettings(processing_resolution=processing_resolution)
    return Protocol.resolve(EvaluationSettings(prediction, **settings), load_benchmark("pairs"), pipe)


def sample_of(depth: np.ndarray) -> Sample:
    return Sample("key", np.zeros((*depth.shape, 3), np.uint8), depth, depth > 0, None)


def lossless(pipe):
    """A pipeline whose autoencoder keeps every pixel; the rest of it is the real one."""
    pipe.vae.encode = lambda pixels: SimpleNamespace(latents=pixels)
    pipe.vae.decode = lambda latents, return_dict: (latents,)
    return pipe


def ramp(height: int = 40, width: int = 56, ratio: float = 6.0) -> np.ndarray:
    rows = np.geomspace(1, ratio, height)[:, None].repeat(width, 1)
    return rows.astype(np.float32)


@pytest.mark.parametrize("space", ["none", "depth", "log", "disparity"])
def test_spaces(space):
    spaces = upper_bound_spaces(space)
    assert tuple(spaces) == UPPER_BOUNDS
    assert spaces["normalized"] == spaces["autoencoded"] == "log"
    assert spaces["output"] == {"disparity": "disparity"}.get(space, "depth")


def test_normalisation_costs_only_the_clipped_ends(pipe):
    """Log depth is uniform: 2 % of the pixels at either end are clipped, and nothing else is lost."""
    depth = np.geomspace(1, 10, 10_000).reshape(100, 100).astype(np.float32)
    normalized, _ = true_log_depths(pipe, depth, None, 64)
    assert (normalized.min(), normalized.max()) == (-1, 1)
    clipped = (np.abs(normalized) == 1).mean()
    assert clipped == pytest.approx(0.04, abs=0.001)
    scores = score_upper_bounds(pipe, sample_of(depth), protocol_for(pipe))
    assert 0 < scores["normalized"]["abs_rel"] < 0.005


def test_lossless_autoencoder_costs_nothing(pipe):
    depth = ramp()
    pipe = lossless(pipe)
    normalized, autoencoded = true_log_depths(pipe, depth, None, 0)
    np.testing.assert_allclose(autoencoded, normalized, atol=1e-6)
    scores = score_upper_bounds(pipe, sample_of(depth), protocol_for(pipe, processing_resolution=0))
    assert scores["autoencoded"]["abs_rel"] == pytest.approx(scores["normalized"]["abs_rel"], abs=1e-6)


def test_output_convention_costs_in_depth_what_the_formula_says(pipe):
    """Exp and min-max of y = 2 log d / log 4 - 1 is a·d^1.44 + b: its best line through d, worked out by hand."""
    depth = np.geomspace(1, 4, 48)[:, None].repeat(48, 1).astype(np.float32)
    scores = score_upper_bounds(
        lossless(pipe), sample_of(depth), protocol_for(pipe, alignment="depth", processing_resolution=0)
    )
    normalized = normalize_log_depth(torch.from_numpy(depth)[None]).values[0].double().numpy()
    line = np.polyfit(np.exp(normalized).ravel(), depth.astype(np.float64).ravel(), 1)
    error = np.abs(np.polyval(line, np.exp(normalized)) - depth) / depth
    assert scores["output"]["abs_rel"] == pytest.approx(error.mean(), rel=1e-4)
    assert scores["output"]["abs_rel"] > 5 * scores["autoencoded"]["abs_rel"]


def test_autoencoder_sees_the_map_as_the_pipeline_would(pipe):
    """At the processing size, padded: 56x40 pixels at 30 become 30x21, padded to 32x24."""
    seen = []
    encode = pipe.vae.encode

    def spy(pixels):
        seen.append(pixels)
        return encode(pixels)

    pipe.vae.encode = spy
    _, autoencoded = true_log_depths(pipe, ramp(40, 56), None, 30)
    (pixels,) = seen
    assert tuple(pixels.shape) == (1, 3, 24, 32)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert torch.equal(pixels[..., 20, :], pixels[..., 23, :])
    assert autoencoded.shape == (40, 56)
    assert autoencoded.dtype == np.float32


def test_autoencoder_does_not_see_holes_nor_what_is_beyond_the_cap(pipe):
    depth = ramp()
    holes = depth.copy()
    holes[10:13, 20:23] = 0
    holes[20:22, 30:33] = 1000.0
    pipe = lossless(pipe)
    whole, with_holes = (true_log_depths(pipe, one, 100.0, 0)[1] for one in (depth, holes))
    assert np.abs(whole - with_holes).max() < 0.2
    unlimited = true_log_depths(pipe, holes, None, 0)[1]
    assert np.abs(whole - unlimited).max() > 0.2


def test_bounds_of_a_model_whose_values_are_not_clipped(pipe):
    """Nothing is lost but what is beyond the cap, which is represented by it; the autoencoder sees the whole range."""
    depth = np.geomspace(1, 80, 10_000).reshape(100, 100).astype(np.float32)
    pipe = lossless(pipe)
    normalized, autoencoded = true_log_depths(pipe, depth, None, 0, NORMALIZATIONS["diff2flow"])
    assert normalized.max() > 1
    np.testing.assert_allclose(autoencoded, normalized, atol=1e-5)
    line = np.polyfit(np.log(depth).ravel(), normalized.ravel(), 1)
    np.testing.assert_allclose(np.polyval(line, np.log(depth)), normalized, atol=1e-4)
    settings = {"processing_resolution": 0, "depth_normalization": "diff2flow"}
    unclipped = score_upper_bounds(pipe, sample_of(depth), protocol_for(pipe, **settings))
    clipped = score_upper_bounds(pipe, sample_of(depth), protocol_for(pipe, processing_resolution=0))
    for name in ("normalized", "autoencoded"):
        assert unclipped[name]["abs_rel"] < 1e-5 < clipped[name]["abs_rel"]
    deep = depth.copy()
    deep[-1] = 300.0
    normalized, autoencoded = true_log_depths(pipe, deep, 350.0, 0, NORMALIZATIONS["diff2flow"])
    assert (normalized[-1] == normalized.max()).all()
    np.testing.assert_allclose(autoencoded, normalized, atol=1e-5)


def test_another_normalisation_is_refused_by_name():
    with pytest.raises(ValueError, match="`depth_normalization` must be one of"):
        EvaluationSettings(depth_normalization="marigold")


def test_frame_without_range(pipe):
    scores = score_upper_bounds(pipe, sample_of(np.full((32, 32), 3.0, np.float32)), protocol_for(pipe))
    assert scores["normalized"]["abs_rel"] == pytest.approx(0, abs=1e-6)


@given(st.integers(1, 13), st.integers(1, 13), st.floats(0.02, 1), st.integers(0, 99))
def test_holes_are_filled_from_what_is_known(height, width, share, seed):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.uniform(-1, 1, (1, height, width))).float()
    known = torch.from_numpy(rng.random((1, height, width)) < share)
    filled = fill_holes(values, known)
    if not known.any():
        assert torch.equal(filled, values)
        return
    assert torch.equal(filled[known], values[known])
    assert filled.min() >= values[known].min() - 1e-6
    assert filled.max() <= values[known].max() + 1e-6
    # Unknown values have no say.
    other = torch.where(known, values, 77.0)
    assert torch.equal(fill_holes(other, known), filled)


def test_a_hole_takes_the_mean_of_its_block():
    values = torch.tensor([[[1.0, 3.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]]])
    filled = fill_holes(values, values > 0)
    torch.testing.assert_close(filled, torch.tensor([[[1.0, 3.0, 3.0, 3.0], [5.0, 3.0, 3.0, 3.0]]]))
