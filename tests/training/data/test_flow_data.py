"""`training/data/flow_data.py`: weights of latent cells, and samples for autoencoders of any number of channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers.components import build_components, build_image_encoder, build_unet, build_vae
from torch.utils.data import default_collate

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.depth_normalization import DepthNormalization
from depthfm_diffusers.training.data.draws import FlowDraws, TimeDistribution
from depthfm_diffusers.training.data.flow_data import FEATURES, FlowFrames, cache_latents, encode_batch, latent_weight
from depthfm_diffusers.training.data.latent_cache import CachedSamples, CacheSettings
from depthfm_diffusers.training.data.samples import SampleSettings
from depthfm_diffusers.training.data.sources import MixedFrames
from depthfm_diffusers.training.objectives.flow_objective import data_loss, predict_velocity

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


def test_latent_weight_is_the_share_of_valid_pixels():
    valid = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    valid[..., :8, :8] = True
    valid[..., :4, 8:] = True
    assert latent_weight(valid, (2, 2)).flatten().tolist() == [1.0, 0.5, 0.0, 0.0]


def pipeline(channels: int, **vae: object) -> DepthFMPipeline:
    parts = build_components()
    parts["vae"] = build_vae(latent_channels=channels, **vae)
    parts["unet"] = build_unet(in_channels=2 * channels, out_channels=channels)
    return DepthFMPipeline(**parts)


def flow_frames(shard, pipe: DepthFMPipeline) -> FlowFrames:
    frames = MixedFrames.open([str(shard)])
    draws = FlowDraws(TimeDistribution(), pipe.vae.config.latent_channels, path_noise=True)
    return FlowFrames(frames, range(3), SampleSettings(), DepthNormalization(), draws, pipe.vae_scale_factor)


@pytest.mark.parametrize("channels", [3, 16])
@torch.no_grad()
def test_latents_of_any_number_of_channels_are_trained_on_and_cached(channels, shard, tmp_path):
    pipe = pipeline(channels)
    frames = flow_frames(shard, pipe)
    cache = CacheSettings(tmp_path, variants=1, batch_size=2)
    cached = cache_latents(pipe, frames, cache, with_depth=False, accelerator=Accelerator(cpu=True))
    batch = encode_batch(pipe, default_collate([frames[0, index] for index in range(3)]))
    again = default_collate([cached[0, index] for index in range(3)])
    torch.testing.assert_close(again["depth_latent"], batch["depth_latent"], rtol=0, atol=5e-3)
    for samples in (batch, again):
        assert samples["noise"].shape == samples["path_noise"].shape == (3, channels, 6, 8)
        state = predict_velocity(pipe.unet, pipe.scheduler, pipe.prompt_embedding(), samples, sigma_min=0.1)
        assert state.velocity.shape == (3, channels, 6, 8)
        assert torch.isfinite(data_loss(state, samples["weight"]))


def test_autoencoders_that_differ_in_scale_or_shift_have_caches_of_their_own(shard, tmp_path):
    folders = set()
    for settings in ({}, {"scaling_factor": 0.3}, {"shift_factor": 0.1}, {"shift_factor": 0.0}):
        pipe = pipeline(4, **settings)
        cache = CacheSettings(tmp_path, variants=1, batch_size=4)
        cached = cache_latents(pipe, flow_frames(shard, pipe), cache, False, Accelerator(cpu=True))
        folders.add(cached.files.folder)
    assert len(folders) == 3  # a shift of 0 is none


@torch.no_grad()
def test_features_of_a_frozen_trunk_are_cached(shard, tmp_path):
    parts = build_components() | {"unet": build_unet(in_channels=13), "image_encoder": build_image_encoder()}
    pipe, cache = DepthFMPipeline(**parts), CacheSettings(tmp_path, variants=1, batch_size=2)
    pipe.image_encoder.trunk.requires_grad_(False)

    def cached() -> CachedSamples:
        return cache_latents(pipe, flow_frames(shard, pipe), cache, False, Accelerator(cpu=True))

    with_features = cached()
    batch = encode_batch(pipe, default_collate([flow_frames(shard, pipe)[0, index] for index in range(3)]))
    again = default_collate([with_features[0, index] for index in range(3)])
    for name, channels, size in zip(FEATURES, (8, 12, 16), ((6, 8), (3, 4), (2, 2)), strict=True):
        assert again[name].dtype == torch.float16
        assert again[name].shape == (3, channels, *size)
        torch.testing.assert_close(again[name].float(), batch[name], rtol=2e-3, atol=1e-3)

    def folder() -> Path:
        return cached().files.folder

    first = folder()
    pipe.image_encoder.feature_mean += 1
    pipe.image_encoder.projection.weight += 1
    assert folder() == first, "features are kept as they are before both"
    pipe.image_encoder.trunk.stem.conv.weight += 1
    assert folder() != first
    pipe.image_encoder.trunk.requires_grad_(True)
    assert not set(FEATURES) & cached()[0, 0].keys()
    without = DepthFMPipeline(**build_components())
    pipe.image_encoder = None
    assert (
        folder()
        == cache_latents(without, flow_frames(shard, without), cache, False, Accelerator(cpu=True)).files.folder
    )
