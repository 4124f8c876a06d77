"""`evaluation/speed.py`: Marigold's pipeline beside one whose UNet also takes features of the image."""

from __future__ import annotations

import torch
from helpers.components import build_components, build_image_encoder, build_unet

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.evaluation.speed import marigold_on_components, run_benchmark


def test_a_model_with_an_image_encoder_is_timed_beside_marigold():
    parts = build_components() | {"unet": build_unet(in_channels=13), "image_encoder": build_image_encoder()}
    pipe = DepthFMPipeline(**parts, default_processing_resolution=64)
    report = run_benchmark(pipe, steps=(1,), marigold_steps=(1,), repeats=1)
    assert [row["evaluations"] for row in report["rows"]] == [1, 1]
    assert pipe.unet.config.in_channels == 13
    smaller = marigold_on_components(pipe).unet
    torch.testing.assert_close(smaller.conv_in.weight, pipe.unet.conv_in.weight[:, :8], rtol=0, atol=0)


def test_networks_are_shared_where_they_fit():
    pipe = DepthFMPipeline(**build_components())
    assert marigold_on_components(pipe).unet is pipe.unet
