"""Which files make up a model, what is said of damaged ones, and what a Hub that cannot be reached costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.components import build_vae
from safetensors.torch import load_file, save_file

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.checkpoints.model_folder import (
    check_model_folder,
    load_pipeline,
    model_fingerprint,
    resolve_model,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(pipe, tmp_path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_what_training_leaves_beside_a_model_is_not_looked_at(folder, tmp_path):
    before = model_fingerprint(folder)
    shutil.copytree(folder, folder / "checkpoint-10")
    (folder / "checkpoint-10" / "unet" / WEIGHTS).write_bytes(b"partial")
    (folder / "run_config.json").write_text("{")
    (folder / "latents.safetensors").write_bytes(b"")
    check_model_folder(folder)
    assert model_fingerprint(folder) == before
    assert resolve_model(str(folder)) == folder
    assert isinstance(load_pipeline(folder, "cpu"), DepthFMPipeline)


@pytest.mark.parametrize(
    "name", ["model_index.json", "scheduler/scheduler_config.json", f"prompt_embedding/{WEIGHTS}"]
)
def test_every_file_of_the_model_is_in_the_fingerprint_and_checked(folder, name):
    before, path = model_fingerprint(folder), folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "_diffusers_version": "0"}))
    else:
        rewrite(path, lambda tensors: tensors["embedding"].add_(1))
    assert model_fingerprint(folder) != before
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        check_model_folder(folder)


def test_the_form_that_nothing_loads_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "DepthFMPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model_index\.json says .*, not 'DepthFMPipeline'"):
        check_model_folder(folder)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_missing_tensors_are_named(pipe, folder, variant):
    """Random weights would run in their place."""
    pipe.save_pretrained(folder, variant="fp16")
    path = folder / "unet" / WEIGHTS.replace("model.", f"model.{variant}." if variant else "model.")
    rewrite(path, lambda tensors: tensors.pop("conv_out.bias"))
    with pytest.raises(ValueError, match=f"model file {path} is incomplete: it lacks conv_out.bias"):
        load_pipeline(folder, "cpu", variant=variant)
    assert load_pipeline(folder, "cpu", variant=None if variant else "fp16"), "the other files are whole"


def test_weights_in_several_files_are_whole(pipe, folder):
    (folder / "unet" / WEIGHTS).unlink()
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    loaded = load_pipeline(folder, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), pipe.unet.parameters(), strict=True))


def test_the_older_names_of_an_autoencoders_attention_are_accepted(folder):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors):
        for key in list(tensors):
            for new, name in old.items():
                if new in key:
                    tensors[key.replace(new, name)] = tensors.pop(key)

    rewrite(folder / "vae" / WEIGHTS, rename)
    loaded = load_pipeline(folder, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(loaded.vae.parameters(), build_vae().parameters(), strict=True))


def test_a_repository_out_of_reach_is_said_with_the_reason():
    with pytest.raises(FileNotFoundError, match=r"model nosuch/repo: .* could not be fetched: (?!Cannot load model)"):
        resolve_model("nosuch/repo")
