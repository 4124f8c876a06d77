"""The autoencoder from a single file, in the names of latent diffusion or of diffusers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from helpers.components import DATA, build_vae
from safetensors.torch import load_file, save_file

from depthfm_diffusers import DepthFMPipeline, convert_checkpoint
from depthfm_diffusers.checkpoints.ldm_autoencoder import load_autoencoder_file

CHECKPOINT = DATA / "parity" / "depthfm-random.ckpt"
VAE = DATA / "parity" / "vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def build_autoencoder(**changes) -> AutoencoderKL:
    """As Stable Diffusion's, but narrow."""
    widths = {"block_out_channels": (32, 64, 64, 64), "norm_num_groups": 32, "layers_per_block": 2}
    return build_vae(**{**widths, **changes})


def ldm_weights(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """The weights in the names and shapes of latent diffusion; `test_the_names_are_those_of_diffusers` checks them."""
    levels = len(vae.config.block_out_channels)
    weights = {}
    for name, tensor in vae.state_dict().items():
        if ".attentions.0." in name:
            for new, old in (("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_", "")):
                name = name.replace(f"attentions.0.{new}", f"attentions.0.{old}")
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        place = re.search(r"(down|up)_blocks\.(\d)\.", name)
        if place:
            level = int(place[2]) if place[1] == "down" else levels - 1 - int(place[2])
            name = name.replace(place[0], f"{place[1]}.{level}.").replace(".resnets.", ".block.")
            name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        weights[name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")] = tensor
    return weights


def save(path: Path, weights: dict[str, torch.Tensor], prefix: str = "") -> Path:
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def assert_same(vae: AutoencoderKL, expected: AutoencoderKL) -> None:
    assert vae.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(vae.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(vae(pixels).sample, expected(pixels).sample)


def test_the_names_are_those_of_diffusers():
    """Of its own conversion, which this package does not use: it drops what it does not find."""
    vae = build_autoencoder()
    converted = convert_ldm_vae_checkpoint(ldm_weights(vae), vae.config)
    assert converted.keys() == vae.state_dict().keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in vae.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae.", "state_dict.first_stage_model."])
@pytest.mark.parametrize("names", ["latent diffusion", "diffusers"])
def test_a_single_file_is_the_autoencoder(tmp_path, names, prefix):
    vae = build_autoencoder()
    weights = ldm_weights(vae) if names == "latent diffusion" else vae.state_dict()
    path = save(tmp_path / "vae.safetensors", {**weights, "loss.logvar": torch.zeros(1)}, prefix)
    loaded, notes = load_autoencoder_file(path)
    assert_same(loaded, vae)
    assert (loaded.config.scaling_factor, loaded.config.sample_size) == (0.18215, 512)
    (note,) = notes
    assert "scaling factor: 0.18215 is assumed" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 1, "block_out_channels": (32, 32, 64, 32)},
        {"mid_block_add_attention": False},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
    ],
    ids=str,
)
def test_other_layouts(tmp_path, changes):
    vae = build_autoencoder(**changes)
    assert_same(load_autoencoder_file(save(tmp_path / "vae.safetensors", ldm_weights(vae)))[0], vae)


def test_a_file_of_torch_and_of_half_precision(tmp_path):
    vae = build_autoencoder().half().float()
    half = {name: tensor.half() for name, tensor in ldm_weights(vae).items()}
    torch.save({"state_dict": half, "global_step": 840000}, tmp_path / "vae.ckpt")
    loaded, _ = load_autoencoder_file(tmp_path / "vae.ckpt")
    assert loaded.dtype == torch.float32
    assert_same(loaded, vae)


def test_old_names_of_the_attention_are_accepted(tmp_path):
    vae = build_autoencoder()
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = {}
    for name, tensor in vae.state_dict().items():
        for new, other in old.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{other}")
        weights[name] = tensor
    assert_same(load_autoencoder_file(save(tmp_path / "vae.safetensors", weights))[0], vae)


def test_the_configuration_beside_the_file_is_used(tmp_path):
    """The narrow autoencoder has 8 groups, which no shape says."""
    folder = shutil.copytree(VAE, tmp_path / "vae")
    loaded, notes = load_autoencoder_file(folder / WEIGHTS)
    assert_same(loaded, AutoencoderKL.from_pretrained(VAE))
    assert notes == []


@pytest.mark.parametrize("names", ["latent diffusion", "diffusers"])
def test_conversion_with_a_single_file_is_that_with_a_folder(tmp_path, names):
    vae = build_autoencoder(sample_size=512)
    vae.save_pretrained(tmp_path / "folder")
    weights = ldm_weights(vae) if names == "latent diffusion" else vae.state_dict()
    file = save(tmp_path / "vae.safetensors", weights)
    said = []
    from_file = convert_checkpoint(CHECKPOINT, file, tmp_path / "from file", on_assumption=said.append)
    from_folder = convert_checkpoint(CHECKPOINT, tmp_path / "folder", tmp_path / "from folder")
    assert len(said) == 1
    for part in ("unet", "prompt_embedding", "vae"):
        one, other = load_file(from_file / part / WEIGHTS), load_file(from_folder / part / WEIGHTS)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    first, second = (DepthFMPipeline.from_pretrained(folder).vae.config for folder in (from_file, from_folder))
    assert {**first, "_name_or_path": ""} == {**second, "_name_or_path": ""}


def without(weights: dict, name: str) -> dict:
    return {key: tensor for key, tensor in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "decoder.mid.attn_1.q.weight"), "decoder.mid.attn_1.q.weight is missing"),
        (lambda w: without(w, "decoder.conv_out.weight"), "not hold a whole autoencoder: decoder.conv_out.weight"),
        (lambda w: without(w, "encoder.conv_in.weight"), "no tensor in it is called encoder.conv_in.weight"),
        (lambda w: {**w, "encoder.extra.weight": torch.zeros(1)}, "encoder.extra.weight is unknown"),
        (lambda w: {**w, "decoder.norm_out.bias": torch.zeros(3)}, "decoder.norm_out.bias is of another shape"),
        (lambda w: {**w, "decoder.norm_out.bias": torch.full((32,), torch.nan)}, "NaN or infinite"),
        (lambda w: {"1.weight": torch.zeros(1), "3.conv.0.weight": torch.zeros(1)}, "Give the folder"),
        (lambda w: {**w, **{f"x.{name}": tensor.clone() for name, tensor in w.items()}}, "several networks"),
    ],
)
def test_files_that_are_no_whole_autoencoder_are_refused(tmp_path, change, message):
    path = save(tmp_path / "vae.safetensors", change(ldm_weights(build_autoencoder())))
    with pytest.raises(ValueError, match=rf"`vae` .*vae\.safetensors.*{message}"):
        load_autoencoder_file(path)


def test_layers_that_do_not_fit_the_normalisation_are_refused(tmp_path):
    path = save(tmp_path / "vae.safetensors", ldm_weights(build_vae()))
    with pytest.raises(ValueError, match=r"not multiples of 32.*config\.json beside it"):
        load_autoencoder_file(path)


@pytest.mark.parametrize("latent", [8, 16])
def test_an_autoencoder_of_other_latents_does_not_fit(tmp_path, latent):
    path = save(tmp_path / "vae.safetensors", ldm_weights(build_autoencoder(latent_channels=latent)))
    with pytest.raises(ValueError, match=rf"with the {latent} latent channels of `vae` it needs"):
        convert_checkpoint(CHECKPOINT, path, tmp_path / "out")
