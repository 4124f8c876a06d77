"""Shared fixtures: tiny random components of the real classes, never mocks."""

from __future__ import annotations

import json
import os
import sys

# Nothing in this suite may reach a hub; must be set before huggingface_hub is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The networks are tiny, and pytest-xdist has a process for each core: threads of torch and NumPy would only wait for
# each other. Must be set before either is imported; the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
from helpers.components import build_components, build_unet, build_vae
from helpers.repository import ROOT
from PIL import Image

SCRIPTS = [path for top in ("training", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
# A script finds its neighbours as when it is run: in its own folder.
sys.path += [str(folder) for folder in dict.fromkeys(path.parent for path in SCRIPTS)]


def pytest_configure(config) -> None:
    """Makes warnings of the scripts errors, as setup.cfg does for the package."""
    names = "|".join(path.stem for path in SCRIPTS if path.stem != "__init__")
    config.addinivalue_line("filterwarnings", f"error:::(scene_rendering\\.)?({names})$")


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
    from helpers.training_runs import reset_accelerate

    reset_accelerate()


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    """A tiny WebDataset shard of 12 frames, 6 scenes."""
    from helpers.shards import sloping_frame, write_shard

    folder = tmp_path_factory.mktemp("shards")
    return write_shard(folder / "train-000.tar", [sloping_frame(n) for n in range(12)])


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with what training from nothing needs: `vae/` and `unet.json`."""
    folder = tmp_path_factory.mktemp("parts")
    build_vae().save_pretrained(folder / "vae")
    (folder / "unet.json").write_text(json.dumps(dict(build_unet().config)))
    return folder
