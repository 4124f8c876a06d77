"""`load_synthesis_pipeline`: which folders make a pipeline, and what is said of those that do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionControlNetPipeline
from helpers.controlnet_parts import (
    PIPELINES,
    STEPS,
    build_controlnet,
    build_depth_estimator,
    build_image,
    build_pipelines,
    build_stable_diffusion_pipeline,
    seeded,
    start_arguments,
)
from helpers.stable_diffusion import LAYOUTS
from safetensors.torch import load_file, save_file

from depthfm_diffusers import DepthFMControlNetInpaintPipeline, DepthFMControlNetPipeline
from depthfm_diffusers.inference.synthesis_models import (
    load_lora,
    load_synthesis_folders,
    load_synthesis_pipeline,
    resolve_synthesis_models,
)
from depthfm_diffusers.pretrained.bundled import default_model_path

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=LAYOUTS)
def each_layout(request, tmp_path_factory) -> Path:
    """`base`, `net` and `depth` of one layout."""
    return write_models(tmp_path_factory.mktemp("models"), request.param)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The same of 1.5, and `whole`, a pipeline saved with two ControlNets."""
    folder = write_models(tmp_path_factory.mktemp("models"), "1.5")
    build_pipelines(controlnets=2)[0].save_pretrained(folder / "whole")
    return folder


@pytest.fixture
def copy(models, tmp_path) -> Path:
    shutil.copytree(models, tmp_path / "models")
    return tmp_path / "models"


def write_models(folder: Path, layout: str) -> Path:
    stable = build_stable_diffusion_pipeline(layout)
    stable.save_pretrained(folder / "base")
    build_controlnet(stable.unet).save_pretrained(folder / "net")
    build_depth_estimator().save_pretrained(folder / "depth")
    return folder


def load(folder: Path, cls: type = DepthFMControlNetPipeline, base: str = "base", nets: tuple = ("net",), **options):
    arguments = {"device": "cpu", "depth_model": str(folder / "depth"), **options}
    return load_synthesis_pipeline(cls, str(folder / base), [str(folder / net) for net in nets], **arguments)


def generate(pipe: DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a", **start_arguments(type(pipe)), **STEPS, generator=seeded()).images


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("cls", PIPELINES)
def test_parts_make_the_pipeline_that_code_makes(each_layout, cls):
    pipe = load(each_layout, cls)
    assert type(pipe) is cls
    layout = "1.5" if pipe.unet.config.cross_attention_dim == 24 else "2.1"
    assert np.array_equal(generate(pipe), generate(build_pipelines(cls, layout)[0]))


def test_a_saved_pipeline_alone_or_with_other_parts(models):
    pipe = load(models, DepthFMControlNetInpaintPipeline, "whole", (), depth_model=None)
    assert np.array_equal(generate(pipe), generate(build_pipelines(type(pipe), controlnets=2)[0]))
    for nets in (("net",), ("net", "net", "net")):
        assert len(load(models, base="whole", nets=nets).controlnets) == len(nets)


def test_a_stable_diffusion_with_controlnet(models, tmp_path):
    controlnet = StableDiffusionControlNetPipeline(
        **build_stable_diffusion_pipeline().components | {"controlnet": build_pipelines()[0].controlnet},
        requires_safety_checker=False,
    )
    controlnet.save_pretrained(tmp_path / "base")
    expected = generate(build_pipelines()[0])
    estimator = str(models / "depth")
    own = load_synthesis_pipeline(DepthFMControlNetPipeline, str(tmp_path / "base"), None, estimator, "cpu")
    assert np.array_equal(generate(own), expected)
    shutil.rmtree(tmp_path / "base" / "controlnet")  # not read, but missing
    with pytest.raises(FileNotFoundError, match="controlnet/ is missing"):
        load_synthesis_pipeline(DepthFMControlNetPipeline, str(tmp_path / "base"), [str(models / "net")], estimator)


def test_the_depth_model_is_the_bundled_one_by_default(models):
    folders = resolve_synthesis_models(str(models / "base"), [str(models / "net")])
    assert folders.depth_model == default_model_path()
    assert resolve_synthesis_models(str(models / "whole")).depth_model is None


def test_description_changes_with_what_is_loaded(copy):
    def describe() -> dict:
        return resolve_synthesis_models(str(copy / "base"), [str(copy / "net")], str(copy / "depth")).describe()

    before = describe()
    assert [before["base"]["name"], before["controlnets"][0]["name"], before["depth_model"]["name"]] == [
        "base",
        "net",
        "depth",
    ]
    (copy / "net" / "run_config.json").write_text("{}")  # training leaves such
    assert describe() == before
    tensors = load_file(copy / "net" / WEIGHTS)
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, copy / "net" / WEIGHTS)
    after = describe()
    assert after["controlnets"] != before["controlnets"]
    assert after["base"] == before["base"]
    whole = resolve_synthesis_models(str(copy / "whole")).describe()
    config = copy / "whole" / "controlnet_1" / "config.json"
    config.write_text(config.read_text() + " ")
    assert resolve_synthesis_models(str(copy / "whole")).describe() != whole, "the second ControlNet is part of it"


def test_dtype_and_variant(copy):
    load(copy, dtype=torch.float16).controlnet.save_pretrained(copy / "net", variant="fp16")
    (copy / "net" / WEIGHTS).unlink()
    pipe = load(copy, variant="fp16", dtype=torch.bfloat16)
    assert {one.dtype for one in (pipe.unet, pipe.controlnet, pipe.depth_unet)} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"controlnet .*net cannot be loaded"):
        load(copy)


def test_offload_needs_an_accelerator(models):
    folders = resolve_synthesis_models(str(models / "whole"))
    with pytest.raises(ValueError, match="`offload` is for accelerators"):
        load_synthesis_folders(DepthFMControlNetPipeline, folders, "cpu", offload=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: shutil.rmtree(m / "base"), "base .*base: no such folder"),
        (lambda m: (m / "base" / "model_index.json").unlink(), "base .*model_index.json is missing"),
        (lambda m: shutil.rmtree(m / "base" / "vae"), "the folder vae/ is missing"),
        (lambda m: truncate(m / "base" / "unet" / WEIGHTS), "damaged or incomplete"),
        (lambda m: drop_a_tensor(m / "base" / "unet" / WEIGHTS), "is incomplete: it lacks"),
        (
            lambda m: change(m / "base" / "model_index.json", _class_name="StableDiffusionXLPipeline"),
            "'StableDiffusionXLPipeline', which is no Stable Diffusion 1.x or 2.x. Stable Diffusion XL has other",
        ),
        (lambda m: change(m / "base" / "unet" / "config.json", in_channels=9), "an inpainting model .*needs a mask"),
        (lambda m: shutil.rmtree(m / "net"), "controlnet .*net: no such folder"),
        (lambda m: (m / "net" / WEIGHTS).unlink(), "diffusion_pytorch_model.safetensors is missing"),
        (lambda m: truncate(m / "net" / WEIGHTS), "damaged or incomplete"),
        (lambda m: drop_a_tensor(m / "net" / WEIGHTS), "is incomplete: it lacks"),
        (lambda m: change(m / "net" / "config.json", _class_name="ControlNetUnionModel"), "'ControlNetUnionModel'"),
        (lambda m: change(m / "net" / "config.json", cross_attention_dim=32), "width 32, but the UNet .* to 24"),
        (lambda m: change(m / "net" / "config.json", block_out_channels=[32, 32]), "its block_out_channels is"),
        (lambda m: shutil.rmtree(m / "depth"), "model .*depth: no such folder"),
    ],
)
def test_what_cannot_be_used_is_named(copy, damage, message):
    damage(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(copy)


def test_a_folder_that_holds_a_controlnet_is_pointed_into(models):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing.*: name .*whole/controlnet\."):
        load(models, nets=("whole",))


def test_no_controlnet_and_files_instead_of_folders(models, tmp_path):
    with pytest.raises(ValueError, match="a StableDiffusionPipeline has no ControlNet"):
        load(models, nets=())
    (tmp_path / "v1.safetensors").touch()
    with pytest.raises(ValueError, match="is a file, not a folder in diffusers' format"):
        load_synthesis_pipeline(DepthFMControlNetPipeline, str(tmp_path / "v1.safetensors"), [])


def test_a_hub_that_cannot_be_reached_is_said(models):
    for base, nets in (("some/model", []), (str(models / "base"), ["some/net"])):
        with pytest.raises(FileNotFoundError, match=r"some/(model|net): .*the Hub repository could not be fetched"):
            load_synthesis_pipeline(DepthFMControlNetPipeline, base, nets)


def test_lora(models, tmp_path):
    pipe = load(models)
    before = generate(pipe)
    rank, width = 2, pipe.unet.config.block_out_channels[-1]
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    torch.manual_seed(0)
    weights = {f"{layer}.lora_A.weight": torch.randn(rank, width), f"{layer}.lora_B.weight": torch.randn(width, rank)}
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    assert load_lora(pipe, str(tmp_path)) == tmp_path / "pytorch_lora_weights.safetensors"
    assert not np.array_equal(generate(pipe), before)
    other = load(models)
    save_file({"text.lora_A.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        load_lora(other, str(tmp_path / "other.safetensors"))
    (tmp_path / "pytorch_lora_weights.safetensors").unlink()
    (tmp_path / "third.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="must have one safetensors file, and has 2"):
        load_lora(other, str(tmp_path))


def test_a_photo_can_be_generated_from_with_the_bundled_model(models):
    pipe = load_synthesis_pipeline(DepthFMControlNetPipeline, str(models / "base"), [str(models / "net")])
    pipe.set_progress_bar_config(disable=True)
    output = pipe("a", build_image(), **STEPS, depth_kwargs={"num_inference_steps": 1, "processing_resolution": 64})
    assert output.log_depth.shape == (1, 48, 64, 1)
