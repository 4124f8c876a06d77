"""How diffusers finds the classes of this package, saved and loaded."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from helpers.repository import ROOT
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, FlowMatchingImageToDepthScheduler, PromptEmbedding, default_model_path
from depthfm_diffusers.loaders import registration
from depthfm_diffusers.loaders.registration import NativeLibraryNamesMixin, register_with_diffusers

NATIVE = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "FlowMatchingImageToDepthScheduler"],
    "prompt_embedding": ["diffusers", "PromptEmbedding"],
}


def run_program(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a new process that finds the package."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def module_with(name: str, *classes: type) -> ModuleType:
    module = ModuleType(name)
    for cls in classes:
        setattr(module, cls.__name__, cls)
    return module


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


# After both imports, in either order.
FINDS_THE_CLASSES = """
assert "depthfm_diffusers.models.prompt_embedding" not in sys.modules
cls = diffusers.PromptEmbedding
assert cls is depthfm_diffusers.PromptEmbedding
assert vars(diffusers)["PromptEmbedding"] is cls
assert not hasattr(diffusers, "NobodyKnowsThisClass")
assert diffusers.DDIMScheduler.__module__.startswith("diffusers.")
assert type(diffusers.__spec__.loader).__module__ == "_frozen_importlib_external"
"""


def test_a_fresh_interpreter_loads_the_folder_offline(pipe, image, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    image.save(tmp_path / "image.png")
    np.save(tmp_path / "expected.npy", depth_of(pipe, image))
    program = (
        """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("the network is off")
socket.socket.connect = refuse
import numpy, torch
from PIL import Image
import diffusers
assert "depthfm_diffusers.models.prompt_embedding" not in sys.modules
import depthfm_diffusers
"""
        + FINDS_THE_CLASSES
        + """
pipe = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
depth = pipe(Image.open("image.png"), num_inference_steps=1, generator=torch.Generator().manual_seed(3)).prediction
assert numpy.array_equal(depth, numpy.load("expected.npy"))
print(type(pipe).__module__)
"""
    )
    done = run_program(program, tmp_path)
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
    replacement = type("DDIMScheduler", (DDIMScheduler,), {"__module__": "replacements"})
    monkeypatch.setitem(sys.modules, "replacements", module_with("replacements", replacement))
    monkeypatch.setattr(diffusers, "DDIMScheduler", DDIMScheduler)
    monkeypatch.setattr(registration, "_MODULES", dict(registration._MODULES))
    warnings = []
    monkeypatch.setattr("depthfm_diffusers.loaders.registration.logger.warning", warnings.append)
    register_with_diffusers({"DDIMScheduler": "replacements"})
    assert diffusers.DDIMScheduler is replacement
    assert "scheduling_ddim.DDIMScheduler" in warnings[0]
    register_with_diffusers({"PromptEmbedding": PromptEmbedding.__module__})
    assert diffusers.PromptEmbedding is PromptEmbedding
    assert len(warnings) == 1


def test_default_model_path_is_a_model_folder_or_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("depthfm_diffusers.pretrained.bundled.__file__", str(tmp_path / "bundled.py"))
    folder = tmp_path / "depthfm-tiny"
    with pytest.raises(FileNotFoundError, match="bundled model is missing"):
        default_model_path()
    folder.mkdir(parents=True)
    (folder / "model_index.json").touch()
    assert default_model_path() == folder


@pytest.fixture
def old_diffusers(tmp_path) -> str:
    """The start of a program that finds a diffusers of 0.41.9, in which there is nothing."""
    (tmp_path / "old" / "diffusers").mkdir(parents=True)
    (tmp_path / "old" / "diffusers" / "__init__.py").write_text('__version__ = "0.41.9"\n')
    return f"import sys; sys.path.insert(0, {str(tmp_path / 'old')!r})\n"


def test_too_old_a_diffusers_is_refused_at_import(tmp_path, old_diffusers):
    done = run_program(f"{old_diffusers}import diffusers, depthfm_diffusers", tmp_path)
    assert done.returncode != 0
    assert "ImportError: depthfm_diffusers needs diffusers >= 0.42, but 0.41.9 is installed" in done.stderr


def test_diffusers_finds_the_classes_if_it_is_imported_last(tmp_path):
    """The fresh interpreter above imports it first."""
    program = (
        """
import depthfm_diffusers
assert "depthfm_diffusers.models.prompt_embedding" not in sys.modules
import diffusers
"""
        + FINDS_THE_CLASSES
    )
    done = run_program(program, tmp_path)
    assert done.returncode == 0, done.stderr


def test_classes_are_found_after_reloads_and_in_threads(tmp_path):
    program = """
import importlib, threading
thread = threading.Thread(target=importlib.import_module, args=("diffusers",))
thread.start()
while "diffusers" not in sys.modules:
    pass
import depthfm_diffusers  # while another thread is importing diffusers
import diffusers
thread.join()
found = []
threads = [threading.Thread(target=lambda: found.append(diffusers.PromptEmbedding)) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == [depthfm_diffusers.PromptEmbedding] * 8

for _ in range(2):
    diffusers = importlib.reload(diffusers)
    assert diffusers is sys.modules["diffusers"]
    assert diffusers.PromptEmbedding is depthfm_diffusers.PromptEmbedding
    importlib.reload(sys.modules["depthfm_diffusers.loaders.registration"])
    importlib.reload(depthfm_diffusers)
    assert diffusers.DepthFMPipeline is depthfm_diffusers.DepthFMPipeline
"""
    done = run_program(program, tmp_path)
    assert done.returncode == 0, done.stderr


def test_too_old_a_diffusers_imported_later_is_refused_at_first_use(tmp_path, old_diffusers):
    program = """
import depthfm_diffusers, diffusers
for package in (depthfm_diffusers, diffusers):
    try:
        package.PromptEmbedding
    except ImportError as error:
        print(error)
assert depthfm_diffusers.default_model_path().is_dir()
"""
    done = run_program(old_diffusers + program, tmp_path)
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == 2
    assert all("needs diffusers >= 0.42, but 0.41.9 is installed" in message for message in messages)


@pytest.mark.parametrize("folder", ["controlnet", "stable_diffusion", "marigold", "prompts"])
def test_the_library_is_decided_by_the_class_and_not_by_where_it_lies(pipe, tmp_path, monkeypatch, folder):
    """Diffusers takes a folder that is called as one of its pipelines for the library."""
    name = f"depthfm_diffusers.pipelines.{folder}.prompts"
    moved = type("PromptEmbedding", (PromptEmbedding,), {"__module__": name})
    monkeypatch.setitem(sys.modules, name, module_with(name, moved))
    monkeypatch.setattr(diffusers, "PromptEmbedding", PromptEmbedding)
    monkeypatch.setattr(registration, "_MODULES", dict(registration._MODULES))
    register_with_diffusers({"PromptEmbedding": name})
    assert diffusers.PromptEmbedding is moved

    pipe.prompt_embedding = moved.from_tensor(torch.ones(2, 16))
    pipe.save_pretrained(tmp_path / "exchanged")
    assert index_of(tmp_path / "exchanged") == NATIVE
    DepthFMPipeline(**pipe.components).save_pretrained(tmp_path / "built")
    assert index_of(tmp_path / "built") == NATIVE
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "built").prompt_embedding) is moved


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("somebody.prompts", "somebody.prompts"),
        ("somebody.pipelines.controlnet.prompts", "controlnet"),
        ("depthfm_diffusers_fork.models.prompt_embedding", "depthfm_diffusers_fork.models.prompt_embedding"),
    ],
)
def test_a_foreign_class_of_a_registered_name_keeps_its_library(pipe, module, library):
    foreign = type("PromptEmbedding", (PromptEmbedding,), {"__module__": module})
    pipe.prompt_embedding = foreign.from_tensor(torch.ones(2, 16))
    assert pipe.config["prompt_embedding"] == (library, "PromptEmbedding")
    assert pipe.config["scheduler"] == ("diffusers", "FlowMatchingImageToDepthScheduler")


def test_only_components_are_recorded(pipe):
    pipe.note = PromptEmbedding.from_tensor(torch.ones(2, 16))
    assert "note" not in pipe.config


def test_diffusers_finder_finds_what_the_others_find():
    for name in ("diffusers", "json"):
        ours = registration._FINDER.find_spec(name)
        if name == "json":
            assert ours is None
            continue
        assert ours.origin == diffusers.__file__
        assert ours.loader.get_filename() == diffusers.__file__
        assert importlib.util.find_spec(name).origin == diffusers.__file__
