"""A UNet that takes partial depth: without points it gets zeros, with points it predicts metres in their units."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.completion_parts import build_pipeline, let_points_matter, sparse
from helpers.components import build_components, build_unet

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.image_processing import process_images
from depthfm_diffusers.partial_depth import partial_depth_maps, point_bounds
from depthfm_diffusers.pipelines.depthfm.further_channels import encode_partial_depth, further_channels
from depthfm_diffusers.pipelines.depthfm.trained_completion import flow_with_points, predict_completed
from depthfm_diffusers.training.networks.base_model import prepare_completion

ENCODERS = pytest.mark.parametrize("features", [0, 5], ids=["plain", "image encoder"])


@ENCODERS
@torch.no_grad()
def test_points_change_nothing_before_training(features):
    """The weights are the same to the bit; the output to rounding, as the first layer adds more products, all 0."""
    plain, grown = build_pipeline(features, completion=False), build_pipeline(features)
    assert not plain.takes_partial_depth
    assert grown.takes_partial_depth
    assert grown.unet.config.in_channels == 14 + features
    before, after = plain.unet.conv_in.weight, grown.unet.conv_in.weight
    assert torch.equal(after[:, :8], before[:, :8])
    assert not after[:, 8:14].any()
    assert torch.equal(after[:, 14:], before[:, 8:])
    maps = partial_depth_maps(sparse(48, 64), point_bounds(sparse(48, 64)), 8)[None]
    pixels, time = torch.rand(1, 3, 48, 64) * 2 - 1, torch.tensor(0.3)
    latents = torch.randn(1, 4, 6, 8)
    outputs = []
    for pipe, known in ((plain, None), (grown, maps)):
        condition = torch.cat([pipe.encode_image(pixels), further_channels(pipe, pixels, 1, known)], dim=1)
        outputs.append(pipe.predict_velocity(latents, condition, time, pipe.prompt_embedding(1)))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)


@ENCODERS
def test_saved_loaded_and_predicts_from_images_alone(features, image, tmp_path):
    """Nothing known means zeros: what the new channels have learnt does not count then."""
    pipe = build_pipeline(features)
    arguments = {"ensemble_size": 2, "latents": torch.randn(2, 4, 6, 8)}
    expected = build_pipeline(features, completion=False)(image, **arguments).log_depth
    let_points_matter(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.takes_partial_depth
    np.testing.assert_allclose(loaded(image, **arguments).log_depth, expected, atol=1e-5)


@torch.no_grad()
def test_channels_of_partial_depth():
    pipe = build_pipeline()
    points = sparse(48, 64)
    maps = torch.stack([partial_depth_maps(points, point_bounds(points), 8), torch.zeros(3, 48, 64)])
    channels = encode_partial_depth(pipe.encode_image, maps)
    assert channels.shape == (2, 6, 6, 8)
    latent = pipe.encode_image(maps[:1, :1].expand(-1, 3, -1, -1))
    torch.testing.assert_close(channels[0, :4], latent[0], rtol=1e-4, atol=1e-5)
    assert channels[0, 5, 1, 2].item() == pytest.approx(maps[0, 2, 8:16, 16:24].mean().item())
    assert not channels[1].any()
    pixels = torch.rand(2, 3, 48, 64)
    for batch_size in (1, 2):
        torch.testing.assert_close(further_channels(pipe, pixels, batch_size, maps), channels, rtol=1e-4, atol=1e-5)
    assert not further_channels(pipe, pixels, 1).any()
    assert further_channels(build_pipeline(completion=False), pixels, 1).shape == (2, 0, 6, 8)


@ENCODERS
@torch.no_grad()
def test_metres_scale_with_the_points(features):
    """The network sees points between their own bounds: twice the depth is twice the result, whatever it learnt."""
    pipe = build_pipeline(features)
    let_points_matter(pipe)
    (image,) = process_images(torch.rand(1, 3, 45, 60), 64, "bilinear", 8)
    points, noise = sparse(45, 60), torch.randn(2, 4, 6, 8)
    first = predict_completed(pipe, image, points, noise, 2)
    assert first.shape == (2, 1, 48, 64)
    doubled = predict_completed(pipe, image, points * 2, noise, 2)
    torch.testing.assert_close(doubled, first + math.log(2), atol=1e-4, rtol=0)
    other = predict_completed(pipe, image, sparse(45, 60, seed=1), noise, 2)
    assert (other - first).abs().max() > 1e-3
    evaluations = []
    latents, (a, b) = flow_with_points(pipe, image, points, noise, 2, 1, lambda: evaluations.append(1))
    assert len(evaluations) == 4
    torch.testing.assert_close(a * pipe.decode_depth(latents) + b, first, atol=1e-4, rtol=0)


def test_what_cannot_be_completed_is_named():
    (image,) = process_images(torch.rand(1, 3, 48, 64), 0, "bilinear", 8)
    noise = torch.randn(1, 4, 6, 8)
    with pytest.raises(ValueError, match="was not trained for depth completion"):
        flow_with_points(build_pipeline(completion=False), image, sparse(48, 64), noise, 1)
    with pytest.raises(ValueError, match="`points` must have the image's size"):
        flow_with_points(build_pipeline(), image, sparse(24, 32), noise, 1)
    with pytest.raises(ValueError, match="no known depth"):
        flow_with_points(build_pipeline(), image, torch.zeros(1, 48, 64), noise, 1)
    with pytest.raises(ValueError, match="or 6 more for partial depth, but it takes 11"):
        DepthFMPipeline(**build_components() | {"unet": build_unet(in_channels=11)})


def test_training_refuses_what_would_be_lost():
    with pytest.raises(ValueError, match="give --completion"):
        prepare_completion(build_pipeline(), completion=False, lora=False)
    with pytest.raises(ValueError, match="--lora_rank freezes the UNet"):
        prepare_completion(build_pipeline(completion=False), completion=True, lora=True)
    pipe = build_pipeline()
    before = pipe.unet.conv_in
    prepare_completion(pipe, completion=True, lora=True)
    assert pipe.unet.conv_in is before, "it takes partial depth already"
