"""Shared fixtures: tiny random components of the real classes, never mocks."""

from __future__ import annotations

import json
import os

# Nothing in this suite may reach a hub; must be set before huggingface_hub is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

DATA = Path(__file__).parent / "data"


def build_unet(seed: int = 0, **changes: object) -> UNet2DConditionModel:
    """A random UNet of DepthFM's layout: 8 input channels, 4 output channels, two levels unless `changes` say else."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def build_vae(seed: int = 0, **changes: object) -> AutoencoderKL:
    """A random 8x autoencoder with 4 latent channels, 4 levels as Stable Diffusion's."""
    torch.manual_seed(seed)
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**{**config, **changes}).eval()


def build_components(seed: int = 0) -> dict[str, object]:
    """All components of a `DepthFMPipeline`, tiny and random."""
    from depthfm_diffusers import FlowMatchingImageToDepthScheduler, PromptEmbedding

    torch.manual_seed(seed)
    prompt_embedding = PromptEmbedding(num_tokens=4, dim=16)
    torch.nn.init.normal_(next(prompt_embedding.parameters()))
    return {
        "unet": build_unet(seed),
        "vae": build_vae(seed),
        "scheduler": FlowMatchingImageToDepthScheduler(),
        "prompt_embedding": prompt_embedding.eval(),
    }


@pytest.fixture
def components() -> dict[str, object]:
    """Fresh tiny components for one test."""
    return build_components()


@pytest.fixture
def pipe(components):
    """A tiny random `DepthFMPipeline` at a small processing resolution, quiet."""
    from depthfm_diffusers import DepthFMPipeline

    pipe = DepthFMPipeline(**components, default_processing_resolution=64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def image() -> Image.Image:
    """A smooth 72x48 (width x height) RGB picture, neither side a multiple of 8 times a power of two."""
    y, x = np.mgrid[0:48, 0:72].astype(np.float32)
    channels = [np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 11)]
    return Image.fromarray(np.stack([(c * 127 + 128).astype(np.uint8) for c in channels], axis=-1))


@pytest.fixture
def fresh_accelerate_state():
    """Lets a run of a training script in this process start as in a new one."""
    yield
    from training_runs import reset_accelerate

    reset_accelerate()


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    """A tiny WebDataset shard of 12 frames, 6 scenes."""
    from shards import sloping_frame, write_shard

    folder = tmp_path_factory.mktemp("shards")
    return write_shard(folder / "train-000.tar", [sloping_frame(n) for n in range(12)])


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with what training from nothing needs: `vae/` and `unet.json`."""
    folder = tmp_path_factory.mktemp("parts")
    build_vae().save_pretrained(folder / "vae")
    (folder / "unet.json").write_text(json.dumps(dict(build_unet().config)))
    return folder
