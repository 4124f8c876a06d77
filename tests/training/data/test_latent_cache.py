"""`training/data/latent_cache.py`: what a cache's name depends on, caches of earlier versions, two runs at once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.colour_profiles import SRGB, rgb_profile
from helpers.components import build_components
from helpers.picture_files import orientation, saved
from helpers.shards import sloping_frame, write_shard
from PIL import Image

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.depth_normalization import NORMALIZATIONS, DepthNormalization
from depthfm_diffusers.training.data import latent_cache
from depthfm_diffusers.training.data.draws import FlowDraws, TimeDistribution
from depthfm_diffusers.training.data.flow_data import FlowFrames, cache_latents
from depthfm_diffusers.training.data.latent_cache import CacheSettings, cache_key, chunk_name, fill_cache, size_content
from depthfm_diffusers.training.data.samples import SampleSettings
from depthfm_diffusers.training.data.sources import MixedFrames
from depthfm_diffusers.training.networks.decoding_unet import prepare_decoder
from depthfm_diffusers.utils.locks import lock_output

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture
def pipe() -> DepthFMPipeline:
    return DepthFMPipeline(**build_components())


def flow_frames(shard: Path, pipe: DepthFMPipeline, normalization: DepthNormalization | None = None) -> FlowFrames:
    frames = MixedFrames.open([str(shard)])
    draws = FlowDraws(TimeDistribution(), pipe.vae.config.latent_channels)
    normalization = normalization or DepthNormalization()
    return FlowFrames(frames, range(2), SampleSettings(), normalization, draws, pipe.vae_scale_factor)


def cached(shard: Path, pipe: DepthFMPipeline, folder: Path, *normalization: DepthNormalization) -> Path:
    """Fills the cache of a shard, or finds it; returns its folder."""
    frames, settings = flow_frames(shard, pipe, *normalization), CacheSettings(folder, variants=1, batch_size=2)
    return cache_latents(pipe, frames, settings, False, Accelerator(cpu=True)).files.folder


def name_of_0_6(frames: FlowFrames, pipe: DepthFMPipeline) -> str:
    """What version 0.6.0 and earlier ones called the cache of `cached`."""
    normalization = asdict(frames.normalization)
    del normalization["clip"]
    augmentation = asdict(frames.settings.augmentation)
    content = [frames.indices, augmentation, normalization, size_content(frames), 1, frames.settings.seed]
    content += [pipe.vae.config.scaling_factor, Accelerator(cpu=True).mixed_precision]
    return f"latents-{cache_key(frames.frames.fingerprint(), [pipe.vae], content)}"


@torch.no_grad()
def test_training_the_decoder_keeps_the_cache(pipe, shard, tmp_path):
    first = cached(shard, pipe, tmp_path)
    pipe.vae.requires_grad_(False)
    prepare_decoder(pipe)
    trained = [parameter for parameter in pipe.vae.parameters() if parameter.requires_grad]
    assert trained
    for parameter in trained:
        parameter += 0.1
    assert cached(shard, pipe, tmp_path) == first
    for part in (pipe.vae.quant_conv, pipe.vae.encoder.conv_in):
        part.bias += 0.1
        folder = cached(shard, pipe, tmp_path)
        assert folder != first
        first = folder


def test_each_normalisation_has_a_cache_of_its_own(pipe, shard, tmp_path):
    settings = [*NORMALIZATIONS.values(), DepthNormalization(0.01, 0.99, 120.0)]
    assert len({cached(shard, pipe, tmp_path, one) for one in settings}) == 3


@pytest.mark.parametrize("clip", [True, False])
def test_a_complete_cache_of_an_earlier_version_is_used(pipe, shard, tmp_path, clip):
    """Not one of values that are clipped for values that are not."""
    normalization = DepthNormalization(clip=clip)
    now = cached(shard, pipe, tmp_path, normalization)
    before = now.rename(tmp_path / name_of_0_6(flow_frames(shard, pipe), pipe))
    assert cached(shard, pipe, tmp_path, normalization) == (before if clip else now)


PICTURES = {
    "transparent": lambda picture: saved(picture.convert("RGBA"), "PNG"),
    "transparent colour": lambda picture: saved(picture.quantize(8), "PNG", transparency=0),
    "profile": lambda picture: saved(picture, "PNG", icc_profile=rgb_profile(SRGB, 1.2)),
    "orientation": lambda picture: saved(picture, "PNG", exif=orientation(3)),
}


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_an_earlier_cache_of_pictures_that_are_read_differently_is_not_used(pipe, tmp_path, make, caplog):
    frames = [sloping_frame(n) for n in range(12)]
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    frames[1]["png"] = make(Image.fromarray(pixels))
    shard = write_shard(tmp_path / "a.tar", frames)
    dataset = flow_frames(shard, pipe)
    before = tmp_path / name_of_0_6(dataset, pipe)
    before.mkdir()
    (before / chunk_name(0, 0)).touch()
    settings = CacheSettings(tmp_path, variants=1, batch_size=2)
    chosen = latent_cache.choose_cache(["new"], lambda: [before.name], dataset, settings)
    assert chosen == tmp_path / "new"
    assert f"{before} is not used, and can be removed" in caplog.text
    # A picture that is not trained on does not matter.
    dataset.indices = [0, 2]
    assert latent_cache.choose_cache(["new"], lambda: [before.name], dataset, settings) == before


def test_plain_pictures_are_not_decoded_to_tell(pipe, shard, monkeypatch):
    frames = flow_frames(shard, pipe)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert all(map(frames.frames.reads_as_before, range(12)))


def fill(folder: Path, dataset: FlowFrames, processes: int = 1, calls: list | None = None) -> None:
    """Fills a cache as the main process of a run of so many."""
    Accelerator(cpu=True)  # which the log asks for
    accelerator = SimpleNamespace(
        num_processes=processes,
        process_index=0,
        is_main_process=True,
        device="cpu",
        autocast=torch.no_grad,
        wait_for_everyone=lambda: None,
    )

    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if calls is not None:
            calls.append(len(batch["time"]))
        return {"image_latent": batch["image"]}

    fill_cache(folder, dataset, CacheSettings(folder.parent, 1, 2), encode, accelerator)


def test_a_run_waits_for_another_that_fills_its_cache_and_encodes_nothing(pipe, shard, tmp_path, monkeypatch):
    dataset, calls = flow_frames(shard, pipe), []
    folder = tmp_path / "latents" / "cache"

    def other_run(lock_file: Path, output: Path, wait: bool):
        assert wait
        assert output == folder
        (folder / chunk_name(0, 0)).touch()  # it has just ended
        return lock_output(lock_file, output)

    monkeypatch.setattr(latent_cache, "lock_output", other_run)
    fill(folder, dataset, calls=calls)
    assert not calls
    (folder / chunk_name(0, 0)).unlink()
    monkeypatch.undo()
    fill(folder, dataset, calls=calls)
    assert calls == [2]
    assert [path.name for path in folder.parent.iterdir()] == ["cache"]  # no lock is left
    with lock_output(folder.parent / ".cache.lock", folder):
        fill(folder, dataset, calls=calls)  # it is complete: nothing is locked
    assert calls == [2]


def test_several_processes_do_not_wait_for_another_run(pipe, shard, tmp_path):
    dataset, folder = flow_frames(shard, pipe), tmp_path / "cache"
    with (
        lock_output(tmp_path / ".cache.lock", folder),
        pytest.raises(BlockingIOError, match="another command is writing here") as caught,
    ):
        fill(folder, dataset, processes=2)
    assert caught.value.filename == str(folder)
