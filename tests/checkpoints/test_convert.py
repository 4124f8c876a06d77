"""Conversion of the authors' checkpoints: golden parity, every layout, safety, and what is left on disk."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from helpers.components import DATA, build_vae
from helpers.ldm_reference import LdmReference
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file

from depthfm_diffusers import DepthFMPipeline, convert_checkpoint
from depthfm_diffusers.checkpoints.ldm_checkpoint import load_checkpoint
from depthfm_diffusers.checkpoints.ldm_unet import convert_unet_state_dict, unet_config_from_hparams

CHECKPOINT = DATA / "parity" / "depthfm-random.ckpt"
VAE = DATA / "parity" / "vae"
HPARAMS = {
    "image_size": 16,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [1, 2],
    "channel_mult": [1, 2],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "context_dim": 24,
}


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


# --- Golden parity -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    return load_file(DATA / "parity" / "cases.safetensors")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return convert_checkpoint(CHECKPOINT, VAE, tmp_path_factory.mktemp("converted") / "model", variant="fp16")


@pytest.fixture(scope="module", params=["plain", "rescaled"])
def mode_and_pipe(request, converted):
    pipe = DepthFMPipeline.from_pretrained(converted, rescale_self_attention=request.param == "rescaled")
    pipe.set_progress_bar_config(disable=True)
    return request.param, pipe


@pytest.mark.parametrize("t", ["0", "0.25"])
@torch.no_grad()
def test_velocities_are_the_authors(mode_and_pipe, golden, t):
    mode, pipe = mode_and_pipe
    inputs = torch.cat([golden["source_latent"], golden["image_latent"]], dim=1)
    velocity = pipe.unet(inputs, torch.tensor(float(t)), pipe.prompt_embedding()).sample
    assert relative_error(velocity, golden[f"{mode}_velocity_t{t}"]) < 1e-5


@torch.no_grad()
def test_latents_are_the_authors(mode_and_pipe, golden):
    _, pipe = mode_and_pipe
    latent = pipe.vae.encode(golden["image"]).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert relative_error(latent, golden["image_latent"]) < 1e-5
    assert relative_error(pipe.scheduler.augment(latent, golden["noise"][:1]), golden["source_latent"]) < 1e-5


@pytest.mark.parametrize("ensemble", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_depth_is_the_authors(mode_and_pipe, golden, steps, ensemble):
    mode, pipe = mode_and_pipe
    output = pipe(
        (golden["image"] + 1) / 2,
        num_inference_steps=steps,
        ensemble_size=ensemble,
        processing_resolution=0,
        latents=golden["noise"][:ensemble],
        output_type="pt",
        output_latent=True,
    )
    expected = golden[f"{mode}_depth_steps{steps}" + ("_ensemble3" if ensemble == 3 else "")]
    torch.testing.assert_close(output.prediction, expected, rtol=0, atol=1e-4)
    if steps == 2 and ensemble == 1:
        torch.testing.assert_close(output.log_depth, golden[f"{mode}_decoded_mean_steps2"], rtol=0, atol=1e-4)
        assert relative_error(output.latent, golden[f"{mode}_latent_steps2"]) < 1e-5


# --- Other shapes, against an independent network --------------------------------------------------------------------


def assert_converts(changes, tolerance=1e-5):
    reference = LdmReference({**HPARAMS, **changes})
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 8, 16, 16, generator=generator), torch.randn(2, 5, 24, generator=generator)
    t = torch.tensor([0.0, 0.3])
    expected = reference(x, t, context)
    config = unet_config_from_hparams(reference.hparams)
    unet = UNet2DConditionModel(**config).eval()
    unet.load_state_dict(convert_unet_state_dict(reference.state_dict, config))
    with torch.no_grad():
        assert relative_error(unet(x, t, context).sample, expected) < tolerance


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_in_transformer": True},
        {"num_heads": -1, "num_head_channels": 8},
        {"num_heads": None, "num_head_channels": 16, "legacy": False},
        {"num_heads": 3},
        {"num_heads": -1, "num_head_channels": 24},
        {"channel_mult": (1, 1, 2, 4), "attention_resolutions": (4,)},
        {"channel_mult": [1, 3], "num_res_blocks": [1, 2]},
        {"channel_mult": [1], "attention_resolutions": [1]},
        {"channel_mult": [1]},
        {"channel_mult": [1, 1.5, 2], "model_channels": 64},
        {"attention_resolutions": []},
        {"attention_resolutions": [2, 16]},
        {"transformer_depth": 2},
        {"transformer_depth": 2, "context_dim": [24, 24]},
        {"transformer_depth": [1, 3]},
        {"transformer_depth": [0, 2], "attention_resolutions": [2]},
        {"context_dim": [24]},
        {"use_scale_shift_norm": True},
        {"disable_self_attentions": [True, False]},
        {"disable_self_attentions": [False, True], "use_linear_in_transformer": True},
        {"resblock_updown": True, "attention_resolutions": [], "channel_mult": [1, 2, 2]},
        {"conv_resample": False, "channel_mult": [1]},
        {"use_fp16": True, "use_checkpoint": True, "image_size": 64, "num_heads_upsample": 2},
    ],
    ids=str,
)
def test_converted_network_computes_the_same(changes):
    assert_converts(changes)


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_any_layout_computes_the_same(data):
    multipliers = [1, *data.draw(st.lists(st.sampled_from([1, 2, 3]), max_size=2))]
    levels = len(multipliers)
    heads = data.draw(
        st.sampled_from([{"num_heads": 2}, {"num_heads": 8}, {"num_heads": -1, "num_head_channels": 16}])
    )
    assert_converts(
        {
            **heads,
            "channel_mult": multipliers,
            "num_res_blocks": data.draw(st.lists(st.integers(1, 2), min_size=levels, max_size=levels)),
            "attention_resolutions": data.draw(st.lists(st.sampled_from([1, 2, 4]), unique=True)),
            "transformer_depth": data.draw(st.integers(1, 2)),
            "use_linear_in_transformer": data.draw(st.booleans()),
            "legacy": data.draw(st.booleans()),
            "use_scale_shift_norm": data.draw(st.booleans()),
        }
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": 3}, "`ldm_hparams.dims` is 3"),
        ({"num_classes": 10}, "num_classes"),
        ({"n_embed": 5}, "n_embed"),
        ({"use_spatial_transformer": False}, "use_spatial_transformer"),
        ({"disable_middle_self_attn": True}, "disable_middle_self_attn"),
        ({"conv_resample": False}, "conv_resample"),
        ({"resblock_updown": True}, "resblock_updown"),
        ({"num_attention_blocks": [1, 1]}, "num_attention_blocks"),
        ({"num_heads": -1}, "`num_heads` or `num_head_channels`"),
        ({"num_heads": 0}, "num_heads` must be an integer of at least 1"),
        ({"num_heads": 64}, "does not fit a layer of 32 channels"),
        ({"num_heads": -1, "num_head_channels": 64}, "does not fit a layer of 32 channels"),
        ({"num_heads": -1, "num_head_channels": 24, "legacy": False}, "cannot be converted: it does not divide"),
        ({"num_heads": 3, "use_linear_in_transformer": True}, "does not divide a layer of 32 channels"),
        ({"channel_mult": [2, 4]}, "must start with 1"),
        ({"channel_mult": [1, 1.5]}, "multiple of 32"),
        ({"channel_mult": "12"}, "channel_mult` must be a list"),
        ({"channel_mult": []}, "channel_mult` is empty"),
        ({"model_channels": 24}, "multiple of 32"),
        ({"num_res_blocks": [1]}, "num_res_blocks` must be one number or one for each of 2 levels"),
        ({"num_res_blocks": 0}, "num_res_blocks` must be an integer of at least 1"),
        ({"attention_resolutions": 2}, "attention_resolutions` must be a list"),
        ({"transformer_depth": 0}, "transformer_depth` must be at least 1"),
        ({"transformer_depth": 2, "context_dim": [24, 32]}, "context_dim` is"),
        ({"disable_self_attentions": [True]}, "disable_self_attentions` must have 2 entries"),
        ({"in_channels": "8"}, "in_channels` must be an integer"),
        ({"surprise": 1, "other": 2}, "does not know: other, surprise"),
        ({"model_channels": None, "image_size": None}, "lacks image_size, model_channels"),
    ],
    ids=str,
)
def test_hyperparameters_that_cannot_be_converted_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        unet_config_from_hparams({**HPARAMS, **changes})


def test_levels_without_attention_blocks_have_none():
    config = unet_config_from_hparams({**HPARAMS, "num_attention_blocks": [0, 0]})
    assert config["down_block_types"] == ("DownBlock2D", "DownBlock2D")


def test_wrong_weights_are_listed():
    content = torch.load(CHECKPOINT)
    config = unet_config_from_hparams(content["ldm_hparams"])
    weights = dict(content["state_dict"])
    del weights["out.2.bias"], weights["middle_block.1.norm.weight"]
    weights["ema.decay"] = torch.zeros(1)
    weights["input_blocks.0.0.weight"] = torch.zeros(32, 4, 3, 3)
    with pytest.raises(ValueError, match="does not hold the network") as error:
        convert_unet_state_dict(weights, config)
    message = str(error.value)
    assert "missing: middle_block.1.norm.weight, out.2.bias." in message
    assert "unknown: ema.decay." in message
    assert "input_blocks.0.0.weight is 32x4x3x3, conv_in.weight should be 32x8x3x3" in message


# --- Reading checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    """Save the golden checkpoint with entries changed, and return its path."""
    content = torch.load(CHECKPOINT)

    def save(legacy_format=False, **changes):
        path = tmp_path / "changed.ckpt"
        changed = {k: v for k, v in {**content, **changes}.items() if not (isinstance(v, str) and v == "absent")}
        torch.save(changed, path, _use_new_zipfile_serialization=not legacy_format)
        return path

    return save


@pytest.mark.parametrize("legacy_format", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda array: array,
        lambda array: array[0],
        lambda array: np.asfortranarray(array),
        lambda array: array.astype(">f8"),
        lambda array: torch.from_numpy(array)[0],
    ],
    ids=["1x77xC", "77xC", "fortran", "big-endian-float64", "tensor"],
)
def test_embedding_may_be_a_numpy_array_without_trust(save, change, legacy_format):
    expected = load_checkpoint(CHECKPOINT).empty_text_embedding
    path = save(legacy_format, empty_text_embedding=change(expected.numpy().copy()), noising_step=np.int64(250))
    checkpoint = load_checkpoint(path)
    assert torch.equal(checkpoint.empty_text_embedding, expected)
    assert checkpoint.noising_step == 250


class Payload:
    """Creates a file when unpickled without restriction."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy_format", [False, True])
def test_code_in_a_checkpoint_is_not_run(save, tmp_path, legacy_format):
    for place in (Payload(tmp_path / "pwned"), np.array([Payload(tmp_path / "pwned")], dtype=object)):
        path = save(legacy_format, extra=place)
        with pytest.raises(ValueError, match="--trust-pickle"):
            load_checkpoint(path)
        assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("part", ["all", "list"])
def test_omegaconf_needs_trust_and_then_converts(save, tmp_path, part):
    hparams = torch.load(CHECKPOINT)["ldm_hparams"]
    changed = OmegaConf.create(hparams)
    if part == "list":
        changed = {**hparams, "channel_mult": OmegaConf.create(hparams["channel_mult"])}
    path = save(ldm_hparams=changed)
    with pytest.raises(ValueError, match=r"omegaconf\.\w+\.\w+.*--trust-pickle.*depthfm_diffusers\[convert\]"):
        convert_checkpoint(path, VAE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert load_checkpoint(path, trust_pickle=True).hparams == hparams
    assert (convert_checkpoint(path, VAE, tmp_path / "out", trust_pickle=True) / "model_index.json").is_file()


def test_missing_omegaconf_names_the_extra(save, monkeypatch):
    path = save(ldm_hparams=OmegaConf.create(torch.load(CHECKPOINT)["ldm_hparams"]))
    for name in [name for name in sys.modules if name.split(".")[0] == "omegaconf"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"'omegaconf', which is not installed.*depthfm_diffusers\[convert\]"):
        load_checkpoint(path, trust_pickle=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ldm_hparams": "absent", "noising_step": "absent"}, "lacks ldm_hparams, noising_step"),
        ({"ldm_hparams": [1]}, "`ldm_hparams` in .* must be a dict, got list"),
        ({"state_dict": [1]}, "`state_dict` in .* is a list"),
        ({"state_dict": {"a": torch.zeros(2, dtype=torch.int8)}}, "not floating-point tensors: a"),
        ({"empty_text_embedding": torch.zeros(2, 77, 32)}, r"`empty_text_embedding` in .* got \(2, 77, 32\)"),
        ({"empty_text_embedding": [1.0]}, "must be a tensor or a NumPy array, got list"),
        ({"noising_step": "many"}, "`noising_step` in .* must be an integer, got 'many'"),
    ],
    ids=str,
)
def test_checkpoints_of_another_layout_are_refused(save, changes, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(save(**changes))


def damage(content: bytes, kind: str) -> bytes:
    if kind == "flipped":
        data = bytearray(content)
        for i in range(1000, 40000, 7):
            data[i] ^= 0x55
        return bytes(data)
    return {
        "empty": b"",
        "text": b"hello",
        "truncated": content[:100_000],
        "headless": content[5000:],
        "pickle": b"\x80\x02garbage",
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "headless", "flipped", "pickle"])
@pytest.mark.parametrize("trust_pickle", [False, True])
def test_damaged_files_are_refused(tmp_path, kind, trust_pickle):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(damage(CHECKPOINT.read_bytes(), kind))
    with pytest.raises(
        ValueError, match=r"`checkpoint` .*broken\.ckpt is (damaged|not a file saved by)|could not be read"
    ):
        convert_checkpoint(path, VAE, tmp_path / "out", trust_pickle=trust_pickle)
    assert {p.name for p in tmp_path.iterdir()} == {"broken.ckpt"}


def test_other_zip_files_and_missing_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ValueError, match="not a PyTorch checkpoint"):
        load_checkpoint(tmp_path / "other.zip")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(ValueError, match="is not a file"):
        load_checkpoint(tmp_path)


# --- The folder that is written ------------------------------------------------------------------------------------


def build_tiny_autoencoder(**changes) -> AutoencoderTiny:
    widths, blocks = (8, 8), (1, 1)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        **changes,
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_is_complete_and_safetensors_only(converted):
    names = set(tree(converted))
    models = ("unet", "vae", "prompt_embedding")
    assert names == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        *[f"{model}/config.json" for model in models],
        *[f"{model}/diffusion_pytorch_model{v}.safetensors" for model in models for v in ("", ".fp16")],
    }
    for model in models:
        for variant, dtype in (("", torch.float32), (".fp16", torch.float16)):
            weights = load_file(converted / model / f"diffusion_pytorch_model{variant}.safetensors")
            assert {tensor.dtype for tensor in weights.values()} == {dtype}
    index = json.loads((converted / "model_index.json").read_text())
    assert index["default_num_inference_steps"] == 2
    assert index["default_processing_resolution"] == 640
    assert index["rescale_self_attention"] is False
    texts = b"".join(content for name, content in tree(converted).items() if name.endswith(".json"))
    assert str(DATA).encode() not in texts
    assert [path.name for path in converted.parent.iterdir()] == [converted.name]
    assert converted.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_folder_loads_in_both_precisions(converted, variant):
    pipe = DiffusionPipeline.from_pretrained(
        converted, variant=variant, dtype=torch.float16 if variant else torch.float32, local_files_only=True
    )
    assert pipe.scheduler.config.noise_augmentation_step == 400
    expected = load_checkpoint(CHECKPOINT).state_dict["input_blocks.0.0.weight"]
    # The checkpoint is in float16, so nothing is lost either way.
    assert torch.equal(pipe.unet.conv_in.weight.half(), expected)


def test_weights_are_as_readable_as_the_rest(converted):
    modes = {path.stat().st_mode for path in converted.rglob("*") if path.is_file()}
    assert modes == {(converted / "model_index.json").stat().st_mode}


def test_weights_beyond_float16_are_named(save, tmp_path):
    """65504 is float16's largest number, and the checkpoint's own weights are of that type."""
    weights = torch.load(CHECKPOINT)["state_dict"]
    (key,) = (key for key in weights if key.endswith("out.2.bias") and "_blocks" not in key)
    checkpoint = save(state_dict={**weights, key: weights[key].float() + 1e5})
    with pytest.raises(ValueError, match=r"`variant` 'fp16': the tensor conv_out\.bias of the unet has values"):
        convert_checkpoint(checkpoint, VAE, tmp_path / "out", variant="fp16")
    assert not list(tmp_path.glob("*out*")), "neither the folder nor a part of it"
    assert convert_checkpoint(checkpoint, VAE, tmp_path / "out").is_dir()


def test_rescaling_is_saved_and_switchable(tmp_path, golden):
    folder = convert_checkpoint(CHECKPOINT, VAE, tmp_path / "out", rescale_self_attention=True)
    inputs = torch.cat([golden["source_latent"], golden["image_latent"]], dim=1)
    for options, mode in (({}, "rescaled"), ({"rescale_self_attention": False}, "plain")):
        pipe = DepthFMPipeline.from_pretrained(folder, **options)
        with torch.no_grad():
            velocity = pipe.unet(inputs, torch.tensor(0.0), pipe.prompt_embedding()).sample
        assert relative_error(velocity, golden[f"{mode}_velocity_t0"]) < 1e-5


@pytest.mark.parametrize("kind", ["subfolder", "fp16 only", "tiny"])
def test_forms_of_the_autoencoder(tmp_path, kind):
    source = tmp_path / "source"
    if kind == "subfolder":
        shutil.copytree(VAE, source / "vae")
    elif kind == "fp16 only":
        build_vae().half().save_pretrained(source, variant="fp16")
    else:
        build_tiny_autoencoder().save_pretrained(source)
    folder = convert_checkpoint(CHECKPOINT, source, tmp_path / "out")
    vae = DepthFMPipeline.from_pretrained(folder).vae
    assert type(vae).__name__ == ("AutoencoderTiny" if kind == "tiny" else "AutoencoderKL")
    assert vae.dtype == torch.float32


def test_unusable_autoencoders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither config\.json nor vae/config\.json"):
        convert_checkpoint(CHECKPOINT, tmp_path, tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(VAE, broken)
    (broken / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"`vae` .*broken could not be loaded"):
        convert_checkpoint(CHECKPOINT, broken, tmp_path / "out")
    config = json.loads((VAE / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="holds 'VQModel'"):
        convert_checkpoint(CHECKPOINT, broken, tmp_path / "out")
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        convert_checkpoint(CHECKPOINT, broken, tmp_path / "out")
    build_tiny_autoencoder(latent_channels=8).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="with the 8 latent channels of `vae` it needs 16 and 8"):
        convert_checkpoint(CHECKPOINT, tmp_path / "wide", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "wide"}


def test_embedding_must_fit_the_network(save, tmp_path):
    with pytest.raises(ValueError, match=r"width 16, but `ldm_hparams\.context_dim` is 32"):
        convert_checkpoint(save(empty_text_embedding=torch.zeros(1, 77, 16)), VAE, tmp_path / "out")


def test_existing_output_is_kept_unless_overwritten(converted, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(converted, output)
    (output / "notes.txt").write_text("mine")
    before = tree(output)
    # Refused before the checkpoint is looked at.
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert_checkpoint(tmp_path / "nothing.ckpt", VAE, output)
    with pytest.raises(FileNotFoundError):
        convert_checkpoint(tmp_path / "nothing.ckpt", VAE, output, overwrite=True)
    assert tree(output) == before
    # The autoencoder of the folder that is replaced may be used again.
    convert_checkpoint(CHECKPOINT, output, output, overwrite=True)
    assert set(tree(output)) == {name for name in before if "fp16" not in name and name != "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_overwriting_replaces_model_folders_only(converted, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(FileExistsError, match="is not a model folder"):
        convert_checkpoint(CHECKPOINT, VAE, tmp_path / "photos", overwrite=True)
    with pytest.raises(FileExistsError, match="is not a model folder"):
        convert_checkpoint(CHECKPOINT, VAE, tmp_path / "photos" / "one.jpg", overwrite=True)
    shutil.copytree(converted, tmp_path / "model")
    shutil.copy(CHECKPOINT, tmp_path / "model" / "original.ckpt")
    with pytest.raises(FileExistsError, match="contains the checkpoint"):
        convert_checkpoint(tmp_path / "model" / "original.ckpt", VAE, tmp_path / "model", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert convert_checkpoint(CHECKPOINT, VAE, tmp_path / "empty") == tmp_path / "empty"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("no space left"), MemoryError])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_conversion_leaves_nothing_behind(converted, tmp_path, monkeypatch, interruption, existing):
    output = tmp_path / "out"
    if existing:
        shutil.copytree(converted, output)
    before = tree(tmp_path)
    save_pretrained = DepthFMPipeline.save_pretrained

    def interrupted(self, folder, **kwargs):
        save_pretrained(self, folder, **kwargs)
        raise interruption

    monkeypatch.setattr(DepthFMPipeline, "save_pretrained", interrupted)
    with pytest.raises(interruption if isinstance(interruption, type) else type(interruption)):
        convert_checkpoint(CHECKPOINT, VAE, output, overwrite=True)
    assert tree(tmp_path) == before
    assert output.exists() == existing


def test_a_failed_move_restores_the_old_folder(converted, tmp_path, monkeypatch):
    output = tmp_path / "out"
    shutil.copytree(converted, output)
    before = tree(tmp_path)
    replace = os.replace

    def fail_on_new(source, destination):
        if Path(source).name == "new":
            raise OSError("moved away under us")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_on_new)
    with pytest.raises(OSError, match="moved away"):
        convert_checkpoint(CHECKPOINT, VAE, output, overwrite=True)
    assert tree(tmp_path) == before


def test_output_that_cannot_be_created_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match="cannot be created"):
        convert_checkpoint(tmp_path / "nothing.ckpt", VAE, tmp_path / "file" / "out")


def test_variant_is_checked(tmp_path):
    with pytest.raises(ValueError, match="`variant` must be 'fp16' or None, got 'bf16'"):
        convert_checkpoint(CHECKPOINT, VAE, tmp_path / "out", variant="bf16")
