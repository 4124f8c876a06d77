"""`DepthFMDepthCompletionPipeline`: known depth in, dense metric depth out."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from depthfm_diffusers import DepthFMDepthCompletionPipeline, DepthFMPipeline

HEIGHT, WIDTH = 48, 72


@pytest.fixture
def complete(pipe):
    """The tiny pipeline, quiet."""
    pipe = DepthFMDepthCompletionPipeline.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """A slanted floor, 1 m to 4 m."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (4 - 3 * y / HEIGHT + 0.2 * np.sin(x / 9)).astype(np.float32)


def sparse(truth: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).choice(truth.size, count, replace=False)
    known = np.zeros_like(truth)
    known.flat[pixels] = truth.flat[pixels]
    return known


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("options", [{}, {"num_optimization_steps": 3}, {"ensemble_size": 2}, {"batch_size": 2}])
def test_completes(complete, image, truth, options):
    output = complete(image, sparse(truth, 200), generator=seeded(), **options)
    assert output.depth.shape == output.uncertainty.shape == (1, HEIGHT, WIDTH, 1)
    assert output.depth.dtype == output.uncertainty.dtype == np.float32
    assert np.abs(output.depth[0, ..., 0] - truth).mean() < 0.05
    assert output.fits[0].points == 200
    again = complete(image, sparse(truth, 200), generator=seeded(), **options)
    np.testing.assert_array_equal(output.depth, again.depth)
    np.testing.assert_array_equal(output.uncertainty, again.uncertainty)


def test_the_optimization_fits_the_points(complete, image, truth):
    known = sparse(truth, 400)
    errors = []
    for steps in (0, 12):
        output = complete(image, known, generator=seeded(), num_optimization_steps=steps, correct_residual=False)
        errors.append(np.abs(output.depth[0, ..., 0] - truth).mean())
    assert errors[1] < errors[0]
    assert 0 < output.fits[0].optimization_steps <= 12


def test_depth_that_is_known_everywhere_is_returned(complete, image, truth):
    output = complete(image, truth, generator=seeded())
    assert np.abs(output.depth[0, ..., 0] / truth - 1).max() < 0.01
    kept = complete(image, truth, generator=seeded(), keep_known=True)
    np.testing.assert_array_equal(kept.depth[0, ..., 0], truth)
    assert (kept.uncertainty == 0).all()


def test_holes_may_be_zero_nan_or_masked(complete, image, truth):
    known = sparse(truth, 100)
    first = complete(image, known, generator=seeded()).depth
    nan = np.where(known > 0, known, np.nan)
    np.testing.assert_array_equal(complete(image, nan, generator=seeded()).depth, first)
    np.testing.assert_array_equal(complete(image, truth, known > 0, generator=seeded()).depth, first)
    tensor = torch.from_numpy(known)[None]
    as_tensor = complete(image, tensor, generator=seeded(), output_type="pt")
    np.testing.assert_array_equal(as_tensor.depth[0, 0].numpy(), first[0, ..., 0])


def test_wrong_points_are_corrected_unless_they_are_kept(complete, image, truth):
    known = sparse(truth, 300)
    row, column = np.argwhere(known > 0)[100]
    known[row, column] = 60.0
    depth = complete(image, known, generator=seeded()).depth[0, ..., 0]
    assert abs(depth[row, column] - truth[row, column]) < 0.5
    assert complete(image, known, generator=seeded(), keep_known=True).depth[0, row, column, 0] == 60.0


def test_the_unit_is_that_of_the_points(complete, image, truth, caplog):
    known = sparse(truth, 100)
    metres = complete(image, known, generator=seeded()).depth
    assert not caplog.records
    millimetres = complete(image, known * 1000, generator=seeded()).depth
    np.testing.assert_allclose(millimetres, 1000 * metres, rtol=1e-2)
    assert "multiply them by 0.001 (--scale 0.001)" in caplog.text


def test_the_uncertainty_grows_away_from_the_points(complete, image, truth):
    known = truth.copy()
    known[:, WIDTH // 2 :] = 0
    uncertainty = complete(image, known, generator=seeded()).uncertainty[0, ..., 0]
    assert uncertainty[:, : WIDTH // 2].mean() < 0.5 * uncertainty[:, WIDTH // 2 + 4 :].mean()


def test_several_images(complete, image, truth):
    known = sparse(truth, 100)
    cropped, part = image.crop((0, 0, 56, 40)), known[:40, :56]
    both = complete([image, cropped], [known, part], generator=[seeded(0), seeded(1)])
    assert [one.shape for one in both.depth] == [(HEIGHT, WIDTH, 1), (40, 56, 1)]
    alone = complete(cropped, part, generator=seeded(1))
    np.testing.assert_allclose(both.depth[1], alone.depth[0], rtol=1e-4)
    stacked = complete([image, image], np.stack([known, known]), generator=[seeded(0), seeded(0)])
    np.testing.assert_allclose(stacked.depth[0], stacked.depth[1], rtol=1e-5)


def test_the_guided_flow(complete, image, truth):
    known = sparse(truth, 100)
    output = complete(
        image, known, generator=seeded(), guided_flow=True, num_inference_steps=2, num_optimization_steps=0
    )
    assert np.isfinite(output.depth).all()
    plain = complete(image, known, generator=seeded(), num_inference_steps=2, num_optimization_steps=0)
    assert not np.array_equal(output.depth, plain.depth)


def test_no_step_is_begun_after_the_deadline(complete, image, truth):
    output = complete(image, sparse(truth, 100), generator=seeded(), num_optimization_steps=50, max_seconds=1e-6)
    assert output.fits[0].optimization_steps == 0
    assert np.isfinite(output.depth).all()


def test_half_precision_is_optimized_in_float32(complete, image, truth):
    complete.to(torch.bfloat16)
    output = complete(image, sparse(truth, 100), generator=seeded(), num_optimization_steps=2)
    assert output.depth.dtype == np.float32
    assert output.fits[0].optimization_steps > 0
    assert complete.vae.dtype == torch.bfloat16
    assert np.abs(output.depth[0, ..., 0] - truth).mean() < 0.1


def test_points_that_are_all_at_one_depth(complete, image):
    known = np.zeros((HEIGHT, WIDTH), np.float32)
    known[::8, ::8] = 2.0
    depth = complete(image, known, generator=seeded()).depth
    np.testing.assert_allclose(depth, 2.0, rtol=0.05)


def test_two_points_are_enough(complete, image, truth):
    depth = complete(image, sparse(truth, 2), generator=seeded()).depth
    assert (depth > 0).all()
    assert np.isfinite(depth).all()


def test_loads_from_any_model_and_saves(complete, pipe, tmp_path, image, truth):
    pipe.save_pretrained(tmp_path / "base")
    loaded = DepthFMDepthCompletionPipeline.from_pretrained(tmp_path / "base")
    loaded.save_pretrained(tmp_path / "completion")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "completion")
    assert type(again) is DepthFMDepthCompletionPipeline is diffusers.DepthFMDepthCompletionPipeline
    assert again.default_processing_resolution == 64
    assert type(DepthFMPipeline.from_pipe(again)) is DepthFMPipeline
    again.set_progress_bar_config(disable=True)
    known = sparse(truth, 50)
    np.testing.assert_array_equal(
        again(image, known, generator=seeded()).depth, complete(image, known, generator=seeded()).depth
    )


BAD = [
    (lambda known: np.zeros_like(known), {}, ValueError, "`depth` has no known point"),
    (lambda known: np.where(np.arange(known.size).reshape(known.shape) == 7, 1, 0).astype(np.float32), {}, ValueError,
     "`depth` has a single known point"),
    (lambda known: -known, {}, ValueError, "`depth` holds negative values"),
    (lambda known: np.where(known > 0, np.inf, 0), {}, ValueError, "`depth` holds infinite values"),
    (lambda known: known[:-1], {}, ValueError, "`depth` must have the size of its image, 48×72"),
    (lambda known: (known * 1000).astype(np.uint16), {}, ValueError, "times 0.001 are metres"),
    (lambda known: known, {"mask": np.zeros((HEIGHT, WIDTH), bool)}, ValueError, "left out by the mask"),
    (lambda known: known, {"mask": np.zeros((HEIGHT, WIDTH), np.uint8)}, ValueError, "`mask` must be bool"),
    (lambda known: known, {"mask": np.zeros((3, 3), bool)}, ValueError, "`mask` must have the size"),
    (lambda known: [known, known], {}, ValueError, "a list of one map per image, 1, got 2"),
    (lambda known: np.stack([known, known]), {}, ValueError, "must have the size of its image|one map per image"),
    (lambda known: "depth.png", {}, TypeError, "`depth` must be an array or a tensor"),
    (lambda known: known, {"output_type": "pil"}, ValueError, "`output_type` must be 'np' or 'pt'"),
    (lambda known: known, {"max_seconds": 0.0}, ValueError, "`max_seconds` must be a positive number"),
    (lambda known: known, {"num_optimization_steps": -1}, ValueError, "`num_optimization_steps` must be at least 0"),
    (lambda known: known, {"ensemble_size": 0}, ValueError, "`ensemble_size` must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "options", "error", "message"), BAD)
def test_bad_input(complete, image, truth, change, options, error, message):
    with pytest.raises(error, match=message):
        complete(image, change(sparse(truth, 50)), generator=seeded(), **options)
