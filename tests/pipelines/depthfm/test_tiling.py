"""The tiles of the autoencoder: how large they are, and what they cost in accuracy with the bundled model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from helpers.components import build_components, build_vae
from helpers.repository import ROOT
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, default_model_path


@pytest.mark.parametrize(
    ("resolution", "sample_size", "tile"),
    [(256, 32, 256), (640, 512, 640), (256, 512, 512), (100, 32, 128), (0, 32, 32)],
)
def test_tiles_are_as_large_as_the_images_that_the_model_knows(resolution, sample_size, tile):
    vae = build_vae(sample_size=sample_size)
    config, weights = dict(vae.config), {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    DepthFMPipeline(**{**build_components(), "vae": vae}, default_processing_resolution=resolution)
    assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (tile, tile // 8)
    overlap = vae.tile_overlap_factor * vae.tile_latent_min_size
    assert overlap == int(overlap), "else tiles of latents and of pixels would not cover the same places"
    assert dict(vae.config) == config
    assert all(torch.equal(vae.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(("resolution", "tile"), [(256, 512), (640, 640)])
def test_tiles_of_an_autoencoder_tiny(resolution, tile):
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    DepthFMPipeline(**{**build_components(), "vae": vae}, default_processing_resolution=resolution)
    assert (vae.tile_sample_min_size, vae.tile_latent_min_size) == (tile, tile // 8)


@pytest.fixture(scope="module")
def bundled() -> DepthFMPipeline:
    pipe = DepthFMPipeline.from_pretrained(default_model_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def whole_and_tiled(pipe: DepthFMPipeline, resolution: int) -> list[np.ndarray]:
    """Log depth of the photograph of the README, at one step."""
    photo = Image.open(ROOT / "examples" / "coffee.png").convert("RGB")
    arguments = {"processing_resolution": resolution, "match_input_resolution": False, "num_inference_steps": 1}
    maps = []
    for switch in (pipe.vae.disable_tiling, pipe.vae.enable_tiling):
        switch()
        output = pipe(photo, **arguments, generator=torch.Generator().manual_seed(0))
        maps.append(output.log_depth[0, ..., 0])
    pipe.vae.disable_tiling()
    return maps


def test_at_the_models_own_resolution_tiling_changes_nothing(bundled):
    whole, tiled = whole_and_tiled(bundled, bundled.default_processing_resolution)
    assert np.array_equal(whole, tiled)


def test_what_tiling_costs_at_twice_the_resolution(bundled):
    """Measured: correlation 0.985, mean deviation 3.7 % of the range; with tiles of 32 pixels 0.951 and 9.5 %."""
    whole, tiled = whole_and_tiled(bundled, 512)
    assert np.corrcoef(whole.ravel(), tiled.ravel())[0, 1] > 0.975
    assert abs(tiled - whole).mean() < 0.05 * np.ptp(whole)
    # Seams are blended: from one column to the next, the deviation changes no more where tiles begin than elsewhere.
    change = abs(np.diff(tiled - whole, axis=1)).mean(axis=0)
    seams = [column for start in (192, 384) for column in range(start - 2, start + 2)]
    assert change[seams].max() < 3 * np.median(change)
