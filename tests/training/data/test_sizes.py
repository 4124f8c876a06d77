"""Each source has a size of its own: landscape and portrait frames in one training, each batch of one size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.components import build_components
from helpers.shards import sloping_frame, write_shard
from torch.utils.data import default_collate

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.depth_normalization import DepthNormalization
from depthfm_diffusers.frames import SourceConfig
from depthfm_diffusers.training.data.draws import FlowDraws, TimeDistribution
from depthfm_diffusers.training.data.flow_data import FlowFrames, cache_latents, encode_batch
from depthfm_diffusers.training.data.latent_cache import CacheSettings, size_content
from depthfm_diffusers.training.data.samples import SampleSettings
from depthfm_diffusers.training.data.sampling import EpochBatchSampler
from depthfm_diffusers.training.data.sources import MixedFrames

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Five landscape frames and four portrait frames, two data sources."""
    folder = tmp_path_factory.mktemp("sizes")
    write_shard(folder / "wide" / "000.tar", [sloping_frame(n) for n in range(5)])
    write_shard(folder / "tall" / "000.tar", [sloping_frame(n, 64, 48) for n in range(4)])
    return [str(folder / "wide"), str(folder / "tall")]


def samples(sources, indices=range(9), **settings) -> FlowFrames:
    frames = MixedFrames.open(sources)
    draws = FlowDraws(TimeDistribution(), 4)
    return FlowFrames(frames, indices, SampleSettings(**settings), DepthNormalization(), draws, 8)


def test_each_source_keeps_its_size_and_a_batch_has_one(folders):
    dataset = samples(folders)
    assert dataset.sizes == {0: (48, 64), 1: (64, 48)}
    sampler = EpochBatchSampler(dataset.frames.source_indices(dataset.indices, weighted=False), 2, seed=0)
    shapes = set()
    for items in sampler:
        batch = default_collate([dataset[item] for item in items])
        assert batch["noise"].shape[-2:] == tuple(side // 8 for side in batch["image"].shape[-2:])
        shapes.add(tuple(batch["image"].shape[-2:]))
    assert shapes == {(48, 64), (64, 48)}


def test_a_source_has_a_resolution_of_its_own(folders):
    wide, tall = folders
    dataset = samples([wide, {"path": tall, "resolution": [40, 32]}], resolution=(32, 40))
    assert [dataset.size_of(index) for index in (0, 4, 5, 8)] == [(32, 40), (32, 40), (40, 32), (40, 32)]
    for index in (0, 8):
        assert tuple(dataset[0, index]["depth"].shape[-2:]) == dataset.size_of(index)
    assert samples([wide, {"path": tall, "resolution": [40, 32]}], indices=[5, 7]).sizes == {1: (40, 32)}


def test_a_size_that_does_not_fit_the_autoencoder_names_the_source(folders):
    wide, tall = folders
    with pytest.raises(ValueError, match=r"\(41, 32\) must be multiples of 8"):
        samples([wide, {"path": tall, "resolution": [41, 32]}])


@pytest.mark.parametrize("value", ["big", 64, [64], [64, 48, 3], [64, -8], [64, 48.5], [True, 8]])
def test_a_resolution_that_is_none_is_refused(value):
    with pytest.raises(TypeError, match="resolution must be two positive integers"):
        SourceConfig("frames", resolution=value)


def test_the_cache_holds_sources_of_several_sizes(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("depthfm_diffusers.training.data.latent_cache.CHUNK", 3)
    pipe, dataset = DepthFMPipeline(**build_components()), samples(folders)
    settings, accelerator = CacheSettings(tmp_path, variants=2, batch_size=2), Accelerator(cpu=True)
    cached = cache_latents(pipe, dataset, settings, False, accelerator)
    assert cached.files.starts == [0, 3, 5, 8]
    for index in range(9):
        sample = cached[0, index]
        variant = int(np.random.default_rng([0, 0, index, 1]).integers(2))
        expected = encode_batch(pipe, default_collate([dataset[variant, index]]))
        torch.testing.assert_close(sample["image_latent"], expected["image_latent"][0], rtol=0, atol=5e-3)
        assert sample["noise"].shape == sample["image_latent"].shape
    again = samples([folders[0], {"path": folders[1], "resolution": [40, 32]}])
    assert size_content(again) == [(48, 64), (40, 32)]
    other = cache_latents(pipe, again, settings, False, accelerator)
    assert other.files.folder != cached.files.folder
    assert other[0, 8]["image_latent"].shape[-2:] == (5, 4)
