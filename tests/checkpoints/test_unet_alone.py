"""Conversion of the UNet alone, as safetensors: the same folder as from the authors' checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers.components import DATA
from helpers.ldm_reference import LdmReference
from helpers.stable_diffusion import build_stable_diffusion
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from depthfm_diffusers import DepthFMPipeline, convert_checkpoint
from depthfm_diffusers.checkpoints import ldm_unet
from depthfm_diffusers.checkpoints.ldm_checkpoint import load_checkpoint
from depthfm_diffusers.checkpoints.ldm_layout import complete_hparams, read_hparams
from depthfm_diffusers.checkpoints.ldm_unet import unet_config_from_hparams
from depthfm_diffusers.models.prompt_embedding import embed_empty_prompt

CHECKPOINT = DATA / "parity" / "depthfm-random.ckpt"
VAE = DATA / "parity" / "vae"
PREFIXES = ["", "model.", "model.diffusion_model.", "state_dict.", "state_dict.model.diffusion_model.", "module."]


@pytest.fixture(scope="module")
def content() -> dict:
    return torch.load(CHECKPOINT)


@pytest.fixture(scope="module")
def hparams(content, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hparams") / "hparams.json"
    path.write_text(json.dumps(content["ldm_hparams"]))
    return path


@pytest.fixture
def embedding(content, tmp_path) -> Path:
    np.save(tmp_path / "embedding.npy", content["empty_text_embedding"].numpy())
    return tmp_path / "embedding.npy"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save(path: Path, weights: dict, prefix: str = "", dtype=None, **others: torch.Tensor) -> Path:
    tensors = {f"{prefix}{name}": tensor.to(dtype or tensor.dtype) for name, tensor in weights.items()}
    save_file({**tensors, **others}, path)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bytes]:
    return tree(convert_checkpoint(CHECKPOINT, VAE, tmp_path_factory.mktemp("expected") / "model"))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_safetensors_give_the_folder_of_the_checkpoint(content, hparams, embedding, expected, tmp_path, prefix):
    path = save(tmp_path / "unet.safetensors", content["state_dict"], prefix)
    options = {"hparams": hparams, "empty_text_embedding": embedding, "noise_augmentation_step": 400}
    assert tree(convert_checkpoint(path, VAE, tmp_path / "out", **options)) == expected


def test_what_the_file_and_its_shapes_say_is_enough(content, expected, tmp_path):
    """All but the heads: those are 16 channels wide here."""
    heads = tmp_path / "heads.json"
    heads.write_text('{"num_head_channels": 16}')
    path = save(
        tmp_path / "all.safetensors",
        content["state_dict"],
        "model.",
        empty_text_embedding=content["empty_text_embedding"],
        noising_step=torch.tensor(400),
    )
    assert tree(convert_checkpoint(path, VAE, tmp_path / "out", hparams=heads)) == expected


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_float32_is_equal_to_the_bit_and_float16_close(hparams, embedding, tmp_path, stored):
    """From one random float32 checkpoint."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: tensor.float() + 1e-4 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in torch.load(CHECKPOINT)["state_dict"].items()
    }
    torch.save({**torch.load(CHECKPOINT), "state_dict": weights}, tmp_path / "float32.ckpt")
    path = save(tmp_path / "unet.safetensors", weights, dtype=stored)
    options = {"hparams": hparams, "empty_text_embedding": embedding}
    first = tree(convert_checkpoint(tmp_path / "float32.ckpt", VAE, tmp_path / "ckpt"))
    second = tree(convert_checkpoint(path, VAE, tmp_path / "safetensors", **options))
    if stored is torch.float32:
        assert first == second
        return
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert {name: data for name, data in first.items() if name != unet} == {
        name: data for name, data in second.items() if name != unet
    }
    one, other = load_file(tmp_path / "ckpt" / unet), load_file(tmp_path / "safetensors" / unet)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"state_dict": weights, "epoch": 3}])
def test_the_unet_alone_in_a_file_of_torch(content, hparams, embedding, expected, tmp_path, wrap):
    torch.save(wrap(content["state_dict"]), tmp_path / "unet.pt")
    options = {"hparams": hparams, "empty_text_embedding": embedding}
    assert tree(convert_checkpoint(tmp_path / "unet.pt", VAE, tmp_path / "out", **options)) == expected


def test_a_checkpoint_with_prefixed_names_converts(content, expected, tmp_path):
    weights = {f"model.diffusion_model.{name}": tensor for name, tensor in content["state_dict"].items()}
    torch.save({**content, "state_dict": weights}, tmp_path / "prefixed.ckpt")
    assert tree(convert_checkpoint(tmp_path / "prefixed.ckpt", VAE, tmp_path / "out")) == expected


def test_what_is_missing_in_a_checkpoint_can_be_given(content, hparams, embedding, expected, tmp_path):
    torch.save({name: content[name] for name in ("state_dict", "noising_step")}, tmp_path / "part.ckpt")
    with pytest.raises(ValueError, match=r"lacks ldm_hparams, empty_text_embedding.*--hparams.*--text-encoder"):
        load_checkpoint(tmp_path / "part.ckpt")
    options = {"hparams": hparams, "empty_text_embedding": embedding}
    assert tree(convert_checkpoint(tmp_path / "part.ckpt", VAE, tmp_path / "out", **options)) == expected


# --- The layout ----------------------------------------------------------------------------------------------------

HPARAMS = {
    "image_size": 64,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": 1,
    "attention_resolutions": [1, 2],
    "channel_mult": [1, 2],
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 24,
    "legacy": False,
}


def weights_of(hparams: dict) -> dict[str, torch.Tensor]:
    reference = LdmReference(hparams)
    reference(torch.zeros(1, 8, 16, 16), torch.zeros(1), torch.zeros(1, 3, 24))
    return reference.state_dict


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channel_mult": [1, 2, 2], "attention_resolutions": [2], "num_res_blocks": 2},
        {"channel_mult": [1], "attention_resolutions": []},
        {"channel_mult": [1, 1.5, 2], "model_channels": 128},
        {"channel_mult": [1, 3], "num_res_blocks": [1, 2]},
        {"transformer_depth": 2, "context_dim": 24},
        {"transformer_depth": [1, 3]},
        {"use_scale_shift_norm": True},
        {"disable_self_attentions": [True, False]},
        {"resblock_updown": True, "attention_resolutions": [], "channel_mult": [1, 2, 2]},
    ],
    ids=str,
)
def test_the_layout_is_read_from_the_shapes(changes):
    wanted = {**HPARAMS, **changes}
    found, notes = complete_hparams({}, weights_of(wanted), "file")
    assert unet_config_from_hparams(found) == unet_config_from_hparams(wanted)
    (note,) = notes
    assert "heads of 64 channels" in note


def test_the_layout_of_stable_diffusion_2_is_read_from_its_shapes():
    """In full size, without memory; with the 8 input channels that DepthFM has."""
    wanted = {
        **HPARAMS,
        "model_channels": 320,
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "channel_mult": [1, 2, 4, 4],
        "context_dim": 1024,
    }
    config = unet_config_from_hparams(wanted)
    prefixes = dict(ldm_unet._module_names(config))
    with torch.device("meta"):
        weights = UNet2DConditionModel(**config).state_dict()
    tensors = {ldm_unet._authors_name(name, prefixes): tensor for name, tensor in weights.items()}
    assert len(tensors) == 686
    found, _ = complete_hparams({}, tensors, "file")
    assert unet_config_from_hparams(found) == config


@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_any_layout_is_read_from_the_shapes(data):
    multipliers = [1, *data.draw(st.lists(st.sampled_from([1, 2, 3]), max_size=2))]
    wanted = {
        **HPARAMS,
        "channel_mult": multipliers,
        "num_res_blocks": data.draw(st.lists(st.integers(1, 3), min_size=len(multipliers), max_size=len(multipliers))),
        "attention_resolutions": data.draw(st.lists(st.sampled_from([1, 2, 4]), unique=True)),
        "transformer_depth": data.draw(st.integers(1, 2)),
        "use_linear_in_transformer": data.draw(st.booleans()),
    }
    found, _ = complete_hparams({"num_head_channels": 64}, weights_of(wanted), "file")
    assert unet_config_from_hparams(found) == unet_config_from_hparams(wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_linear_in_transformer": False}, "convolutions around its attention, as in Stable Diffusion 1.x"),
        ({"model_channels": 32, "num_head_channels": 16}, "heads of 64 channels.* do not fit layers of 32"),
    ],
    ids=str,
)
def test_heads_that_would_be_a_bad_guess_are_asked_for(changes, message):
    tensors = weights_of({**HPARAMS, **changes})
    with pytest.raises(ValueError, match=rf"file: the weights do not say the number.*{message}.*--hparams"):
        complete_hparams({}, tensors, "file")
    assert complete_hparams({"num_heads": 2}, tensors, "file")[0]["num_heads"] == 2


def test_weights_of_another_network_have_no_layout(content):
    with pytest.raises(ValueError, match=r"file does not hold the authors' UNet: .*--hparams"):
        complete_hparams({}, {"input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, "file")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.json", json.dumps(HPARAMS)),
        ("entry.json", json.dumps({"ldm_hparams": HPARAMS})),
        ("plain.yaml", "\n".join(f"{name}: {json.dumps(value)}" for name, value in HPARAMS.items())),
        ("ldm.yaml", json.dumps({"model": {"params": {"unet_config": {"target": "x", "params": HPARAMS}}}})),
    ],
)
def test_forms_of_the_hyperparameters(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_hparams(tmp_path / name) == HPARAMS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "cannot be read as JSON or YAML"),
        ("a.json", "[1]", "must hold the arguments"),
        ("a.yaml", "a: [", "cannot be read as JSON or YAML"),
        ("a.yaml", "!!python/object/apply:os.mkdir [pwned]", "cannot be read as JSON or YAML"),
    ],
)
def test_bad_hyperparameter_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"`hparams` .*{name}.*{message}"):
        read_hparams(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"`hparams` .*nothing"):
        read_hparams(tmp_path / "nothing")


# --- The embedding of the empty prompt and the noise ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npy", lambda path, embedding: np.save(path, embedding[0].numpy())),
        ("a.safetensors", lambda path, embedding: save_file({"any": embedding}, path)),
        (
            "b.safetensors",
            lambda path, embedding: save_file({"empty_text_embed": embedding, "x": embedding + 1}, path),
        ),
        ("a.pt", lambda path, embedding: torch.save(embedding, path)),
        ("b.pt", lambda path, embedding: torch.save({"empty_text_embedding": embedding.numpy()}, path)),
    ],
)
def test_files_of_the_embedding(content, hparams, tmp_path, name, write):
    embedding = content["empty_text_embedding"].float()
    write(tmp_path / name, embedding.clone())
    path = save(tmp_path / "unet.safetensors", content["state_dict"])
    checkpoint = load_checkpoint(path, hparams=hparams, empty_text_embedding=tmp_path / name)
    assert torch.equal(checkpoint.empty_text_embedding, embedding)
    assert checkpoint.noising_step == 400
    (note,) = checkpoint.notes
    assert "noise: 400 is assumed" in note


def test_the_embedding_is_computed_by_stable_diffusion(content, hparams, tmp_path):
    stable = build_stable_diffusion(tmp_path / "sd", "2.1")
    path = save(tmp_path / "unet.safetensors", content["state_dict"])
    output = convert_checkpoint(
        path, VAE, tmp_path / "out", hparams=hparams, text_encoder=tmp_path / "sd", noise_augmentation_step=250
    )
    pipe = DepthFMPipeline.from_pretrained(output)
    assert torch.equal(pipe.prompt_embedding(), embed_empty_prompt(stable.tokenizer, stable.text_encoder)())
    assert pipe.scheduler.config.noise_augmentation_step == 250
    with pytest.raises(ValueError, match="Give `empty_text_embedding` or `text_encoder`, not both"):
        load_checkpoint(path, text_encoder=tmp_path / "sd", empty_text_embedding=path)
    with pytest.raises(FileNotFoundError, match=r"`text_encoder` .* there is no tokenizer/"):
        load_checkpoint(path, text_encoder=tmp_path)


def test_arguments_are_preferred_to_what_the_checkpoint_says(content, tmp_path):
    other = torch.ones(77, 32)
    torch.save(other, tmp_path / "other.pt")
    checkpoint = load_checkpoint(CHECKPOINT, empty_text_embedding=tmp_path / "other.pt", noise_augmentation_step=0)
    assert torch.equal(checkpoint.empty_text_embedding[0], other)
    assert checkpoint.noising_step == 0
    assert checkpoint.hparams == content["ldm_hparams"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"text"), "not a file saved by torch.save, nor a safetensors file"),
        (lambda path: save_file({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, path), "must hold one tensor"),
        (lambda path: save_file({"a": torch.ones(3)}, path), r"must have shape 1×tokens×dim"),
        (lambda path: save_file({"a": torch.full((2, 3), torch.nan)}, path), "NaN or infinite"),
    ],
)
def test_bad_files_of_the_embedding_are_refused(content, hparams, tmp_path, write, message):
    path = save(tmp_path / "unet.safetensors", content["state_dict"])
    write(tmp_path / "embedding")
    with pytest.raises(ValueError, match=rf"`empty_text_embedding` .*embedding .*{message}"):
        load_checkpoint(path, hparams=hparams, empty_text_embedding=tmp_path / "embedding")


def test_an_embedding_is_never_unpickled_without_restriction(tmp_path):
    """Not even with `trust_pickle`, which is for the checkpoint; the message does not advise it."""
    torch.save({"empty_text_embedding": torch.ones(2, 3), "hook": os.getcwd}, tmp_path / "embedding.pt")
    with pytest.raises(ValueError, match=r"`empty_text_embedding` .*holds Python objects.*Save the tensors alone"):
        load_checkpoint(CHECKPOINT, empty_text_embedding=tmp_path / "embedding.pt", trust_pickle=True)


def test_an_array_of_objects_is_not_unpickled(content, tmp_path):
    np.save(tmp_path / "embedding.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"`empty_text_embedding` .*cannot be read as an array of numbers"):
        load_checkpoint(CHECKPOINT, empty_text_embedding=tmp_path / "embedding.npy")


# --- Other files ---------------------------------------------------------------------------------------------------


def test_the_embedding_is_asked_for(content, hparams, tmp_path):
    path = save(tmp_path / "unet.safetensors", content["state_dict"])
    with pytest.raises(ValueError, match=r"the UNet alone.*--empty-text-embedding FILE.*--text-encoder DIR"):
        load_checkpoint(path, hparams=hparams)


def test_tensors_beside_the_network_are_left_out_and_said(content, hparams, embedding, tmp_path):
    path = save(
        tmp_path / "all.safetensors",
        content["state_dict"],
        "model.diffusion_model.",
        **{"first_stage_model.encoder.conv_in.weight": torch.zeros(1), "betas": torch.zeros(1)},
    )
    checkpoint = load_checkpoint(path, hparams=hparams, empty_text_embedding=embedding)
    assert checkpoint.state_dict.keys() == content["state_dict"].keys()
    assert any("2 tensors" in note and "first_stage_model" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.safetensors", b"", "damaged or incomplete"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        ("a.safetensors", b"<!DOCTYPE html>", "web page"),
        ("a.gguf", b"GGUF" + bytes(30), "GGUF"),
        ("a.ckpt", b"hello", "not a file saved by torch.save, nor a safetensors file"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"`checkpoint` .*{name} is .*{message}"):
        load_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(1)}, "it lacks state_dict, .*no tensor in it is called input_blocks.0.0.weight"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "diffusers' names"),
        (
            {"a.input_blocks.0.0.weight": torch.zeros(1), "b.input_blocks.0.0.weight": torch.zeros(1)},
            "several networks",
        ),
    ],
    ids=["nothing", "diffusers", "two"],
)
def test_safetensors_of_another_layout_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_name_says_nothing_of_the_format(content, hparams, embedding, tmp_path):
    path = save(tmp_path / "unet.ckpt", content["state_dict"])
    checkpoint = load_checkpoint(path, hparams=hparams, empty_text_embedding=embedding)
    assert checkpoint.state_dict.keys() == content["state_dict"].keys()
    copy = tmp_path / "whole.safetensors"
    copy.write_bytes(CHECKPOINT.read_bytes())
    assert load_checkpoint(copy).hparams == content["ldm_hparams"]
