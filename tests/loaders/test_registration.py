"""How diffusers finds the classes of this package, saved and loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from helpers.repository import ROOT
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, FlowMatchingImageToDepthScheduler, PromptEmbedding, default_model_path
from depthfm_diffusers.loaders.registration import (
    NativeLibraryNamesMixin,
    register_with_diffusers,
)

NATIVE = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "FlowMatchingImageToDepthScheduler"],
    "prompt_embedding": ["diffusers", "PromptEmbedding"],
}


def index_of(folder: Path) -> dict:
    index = json.loads((folder / "model_index.json").read_text())
    return {name: value for name, value in index.items() if name in NATIVE}


def depth_of(pipe: DiffusionPipeline, image: Image.Image) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(image, num_inference_steps=1, generator=torch.Generator().manual_seed(3)).prediction


@pytest.mark.parametrize("loader", [DiffusionPipeline, DepthFMPipeline])
def test_saved_folder_names_diffusers_and_loads_identical(pipe, image, tmp_path, loader):
    pipe.save_pretrained(tmp_path / "first")
    assert index_of(tmp_path / "first") == NATIVE
    loaded = loader.from_pretrained(tmp_path / "first", local_files_only=True)
    assert type(loaded) is DepthFMPipeline
    assert np.array_equal(depth_of(loaded, image), depth_of(pipe, image))

    loaded.save_pretrained(tmp_path / "second")
    assert index_of(tmp_path / "second") == NATIVE
    again = loader.from_pretrained(tmp_path / "second", local_files_only=True)
    assert np.array_equal(depth_of(again, image), depth_of(pipe, image))


def test_exchanged_components_are_saved_natively(pipe, image, tmp_path):
    pipe.scheduler = FlowMatchingImageToDepthScheduler(solver_type="heun")
    pipe.prompt_embedding = PromptEmbedding.from_tensor(torch.ones(2, 16))
    pipe.save_pretrained(tmp_path)
    assert index_of(tmp_path) == NATIVE
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config.solver_type == "heun"
    assert np.array_equal(depth_of(loaded, image), depth_of(pipe, image))


def test_components_passed_to_from_pretrained_are_saved_natively(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    scheduler = FlowMatchingImageToDepthScheduler(solver_type="midpoint")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "first", scheduler=scheduler)
    assert loaded.scheduler is scheduler
    loaded.save_pretrained(tmp_path / "second")
    assert index_of(tmp_path / "second") == NATIVE


def test_a_fresh_interpreter_loads_the_folder_offline(pipe, image, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    image.save(tmp_path / "image.png")
    np.save(tmp_path / "expected.npy", depth_of(pipe, image))
    program = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("the network is off")
socket.socket.connect = refuse
import numpy, torch
from PIL import Image
from diffusers import DiffusionPipeline
import depthfm_diffusers
pipe = DiffusionPipeline.from_pretrained("model", local_files_only=True)
depth = pipe(Image.open("image.png"), num_inference_steps=1, generator=torch.Generator().manual_seed(3)).prediction
assert numpy.array_equal(depth, numpy.load("expected.npy"))
print(type(pipe).__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "depthfm_diffusers.pipelines.depthfm.pipeline_depthfm"


def test_names_of_own_registered_classes_are_mapped_and_others_are_left():
    class Recorder:
        def register_to_config(self, **kwargs):
            self.recorded = kwargs

    class Pipeline(NativeLibraryNamesMixin, Recorder):
        pass

    pipeline = Pipeline()
    entries = {
        "scheduler": (
            "depthfm_diffusers.schedulers.scheduling_flow_matching_image_to_depth",
            "FlowMatchingImageToDepthScheduler",
        ),
        "prompt_embedding": ["diffusers_modules.local.prompt_embedding", "PromptEmbedding"],
        "unregistered": ("diffusers_modules.local.other", "NobodyKnowsThisClass"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "missing": (None, None),
        "default_num_inference_steps": 2,
        "rescale_self_attention": False,
    }
    pipeline.register_to_config(**entries)
    assert pipeline.recorded == {
        **entries,
        "scheduler": ("diffusers", "FlowMatchingImageToDepthScheduler"),
        "prompt_embedding": ("diffusers", "PromptEmbedding"),
    }


def test_importing_the_package_registers_its_classes():
    for cls in (DepthFMPipeline, FlowMatchingImageToDepthScheduler, PromptEmbedding):
        assert getattr(diffusers, cls.__name__) is cls


def test_replacing_a_class_of_diffusers_is_reported(monkeypatch, caplog):
    replacement = type("DDIMScheduler", (DDIMScheduler,), {})
    monkeypatch.setattr(diffusers, "DDIMScheduler", DDIMScheduler)
    warnings = []
    monkeypatch.setattr("depthfm_diffusers.loaders.registration.logger.warning", warnings.append)
    register_with_diffusers(replacement)
    assert diffusers.DDIMScheduler is replacement
    assert "scheduling_ddim.DDIMScheduler" in warnings[0]
    register_with_diffusers(PromptEmbedding)
    assert len(warnings) == 1


def test_default_model_path_is_a_model_folder_or_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("depthfm_diffusers.pretrained.bundled.__file__", str(tmp_path / "bundled.py"))
    folder = tmp_path / "depthfm-tiny"
    with pytest.raises(FileNotFoundError, match="bundled model is missing"):
        default_model_path()
    folder.mkdir(parents=True)
    (folder / "model_index.json").touch()
    assert default_model_path() == folder


def test_too_old_a_diffusers_is_refused_at_import():
    program = "import diffusers; diffusers.__version__ = '0.41.9'; import depthfm_diffusers"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode != 0
    assert "ImportError: depthfm_diffusers needs diffusers >= 0.42, but 0.41.9 is installed" in done.stderr
