"""Both ways of `DepthFMDepthCompletionPipeline`: the points as an input of a trained network, or an optimisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.completion_parts import build_pipeline, let_points_matter, sparse

from depthfm_diffusers import DepthFMDepthCompletionPipeline
from depthfm_diffusers.image_processing import process_images, resize
from depthfm_diffusers.pipelines.depthfm.trained_completion import predict_completed

POINTS = sparse(45, 60)
PLAIN = {"correct_residual": False, "output_type": "pt"}


@pytest.fixture
def trained() -> DepthFMDepthCompletionPipeline:
    parts = build_pipeline()
    let_points_matter(parts)
    pipe = DepthFMDepthCompletionPipeline(**parts.components, default_processing_resolution=64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def plain() -> DepthFMDepthCompletionPipeline:
    parts = build_pipeline(completion=False).components
    pipe = DepthFMDepthCompletionPipeline(**parts, default_processing_resolution=64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe, image, points=POINTS, **arguments) -> torch.Tensor:
    noise = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    return pipe(image, points, ensemble_size=2, latents=noise, **PLAIN | arguments).depth


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(1, 3, 45, 60, generator=torch.Generator().manual_seed(0))


def test_the_trained_way_is_the_default_of_a_model_that_can(trained, plain, picture):
    """Metres by the network alone: no fit, no optimisation."""
    noise = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    (image,) = process_images(picture, 64, "bilinear", 8)
    expected = predict_completed(trained, image, POINTS, noise, 2).mean(dim=0, keepdim=True)
    depth = call(trained, picture)
    assert depth.shape == (1, 1, 45, 60)
    expected = resize(expected, (45, 60), "bilinear").exp()
    torch.testing.assert_close(depth, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(call(trained, picture, method="trained"), depth)
    assert (call(trained, picture, method="optimize") / depth - 1).abs().max() > 1e-3
    torch.testing.assert_close(call(plain, picture), call(plain, picture, method="optimize"))


def test_twice_the_depth_is_twice_the_result(trained, picture):
    torch.testing.assert_close(call(trained, picture, POINTS * 2), 2 * call(trained, picture), rtol=1e-3, atol=0)


def test_the_trained_prediction_can_be_refined(trained, picture):
    """By the optimisation, and by what is left at the points; a large region without depth is filled."""
    known = POINTS[0] > 0
    known[:, 20:] = False
    points = torch.where(known, POINTS[0], 0)[None]
    error = {}
    for name, arguments in (
        ("plain", {}),
        ("optimized", {"num_optimization_steps": 10}),
        ("corrected", {"correct_residual": True}),
    ):
        depth = call(trained, picture, points, **arguments)[0, 0]
        assert (depth > 0).all()
        error[name] = (depth / points[0] - 1)[known].abs().mean().item()
    assert error["optimized"] < error["plain"]
    assert error["corrected"] < error["plain"]
    kept = trained(picture, points, keep_known=True, output_type="pt").depth[0, 0]
    assert torch.equal(kept[known], points[0][known])


def test_images_of_several_sizes_are_completed_by_themselves(trained):
    pictures = [
        np.random.default_rng(i).random((*size, 3), dtype=np.float32) for i, size in enumerate(((48, 64), (40, 40)))
    ]
    points = [sparse(48, 64), sparse(40, 40)]
    noises = [torch.randn(2, 4, 6, 8), torch.randn(2, 4, 8, 8)]
    together = trained(pictures, points, ensemble_size=2, latents=noises, output_type="pt").depth
    for picture, known, noise, expected in zip(pictures, points, noises, together, strict=True):
        alone = trained(picture, known, ensemble_size=2, latents=noise, output_type="pt", batch_size=2).depth[0]
        torch.testing.assert_close(alone, expected, rtol=1e-3, atol=0)


def test_ways_that_a_model_does_not_have_are_refused(trained, plain, picture):
    with pytest.raises(ValueError, match="needs a model that was trained with"):
        call(plain, picture, method="trained")
    with pytest.raises(ValueError, match="got 'best'"):
        call(plain, picture, method="best")
    with pytest.raises(ValueError, match="steers a flow that does not see"):
        call(trained, picture, method="trained", guided_flow=True)
    assert torch.isfinite(call(trained, picture, guided_flow=True, num_inference_steps=2)).all()
