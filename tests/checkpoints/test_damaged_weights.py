"""Weight files that are damaged, or were packed in another way, are refused: none becomes a model of wrong weights."""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.components import DATA
from safetensors.torch import load_file, save_file

from depthfm_diffusers import DepthFMPipeline, convert_checkpoint
from depthfm_diffusers.checkpoints.ldm_checkpoint import load_checkpoint
from depthfm_diffusers.checkpoints.model_folder import check_model_folder, load_pipeline

CHECKPOINT = DATA / "parity" / "depthfm-random.ckpt"
VAE = DATA / "parity" / "vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def repack(source: Path, target: Path, change=lambda name, data: data, compression=zipfile.ZIP_STORED) -> Path:
    """Writes the members of a zip file again, as `zip` does: each may be changed, and all may be compressed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def largest_record(path: Path) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        return max(archive.infolist(), key=lambda info: info.file_size)


@pytest.mark.parametrize("trust_pickle", [False, True])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_checkpoint_is_refused(tmp_path, compression, trust_pickle):
    path = repack(CHECKPOINT, tmp_path / "rezipped.ckpt", compression=compression)
    with pytest.raises(ValueError, match=r"`checkpoint` .*rezipped\.ckpt .*compressed.*zip -0"):
        load_checkpoint(path, trust_pickle=trust_pickle)


def test_a_checkpoint_that_is_packed_again_without_compression_is_the_same(tmp_path):
    expected = load_checkpoint(CHECKPOINT)
    repacked = load_checkpoint(repack(CHECKPOINT, tmp_path / "rezipped.ckpt"))
    assert repacked.state_dict.keys() == expected.state_dict.keys()
    assert all(torch.equal(repacked.state_dict[name], tensor) for name, tensor in expected.state_dict.items())


@pytest.mark.parametrize("trust_pickle", [False, True])
@pytest.mark.parametrize("change", ["cut to 2 bytes", "empty", "one element short", "one element long"])
def test_a_storage_of_another_length_is_refused(tmp_path, change, trust_pickle):
    name = largest_record(CHECKPOINT).filename
    cut = {
        "cut to 2 bytes": lambda data: data[:2],
        "empty": lambda data: b"",
        "one element short": lambda data: data[:-2],
        "one element long": lambda data: data + b"\0\0",
    }[change]
    path = repack(CHECKPOINT, tmp_path / "short.ckpt", lambda n, data: cut(data) if n == name else data)
    with pytest.raises(ValueError, match=r"`checkpoint` .*short\.ckpt is damaged: .*another length"):
        load_checkpoint(path, trust_pickle=trust_pickle)


def flipped(content: bytes, position: int, bit: int) -> bytes:
    data = bytearray(content)
    data[position] ^= 1 << bit
    return bytes(data)


def test_a_flipped_bit_is_found_or_does_not_matter(tmp_path):
    """Anywhere in the file: in weights, in the pickle, in the zip file's own structures, in the padding between."""
    content = CHECKPOINT.read_bytes()
    expected = load_checkpoint(CHECKPOINT)
    path = tmp_path / "flipped.ckpt"
    info = largest_record(CHECKPOINT)
    generator = np.random.default_rng(0)
    positions = [*generator.integers(0, len(content), 40), *range(info.header_offset, info.header_offset + 30, 2)]
    positions += list(range(len(content) - 120, len(content), 6))
    messages = []
    for position in positions:
        path.write_bytes(flipped(content, int(position), int(generator.integers(8))))
        try:
            read = load_checkpoint(path)
        except ValueError as error:
            messages.append(str(error))
            continue
        assert all(torch.equal(read.state_dict[name], t) for name, t in expected.state_dict.items()), position
        assert torch.equal(read.empty_text_embedding, expected.empty_text_embedding), position
        assert (read.hparams, read.noising_step) == (expected.hparams, expected.noising_step), position
    assert len(messages) > len(positions) / 2
    assert all("flipped.ckpt" in message for message in messages)


def test_a_flipped_bit_in_a_weight_is_named_as_damage(tmp_path):
    info = largest_record(CHECKPOINT)
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(flipped(CHECKPOINT.read_bytes(), info.header_offset + 200 + info.file_size // 2, 0))
    with pytest.raises(ValueError, match=r"flipped\.ckpt is damaged: .*checksum.*Download or copy it again"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["weight", "embedding", "vae"])
def test_values_that_are_not_finite_are_refused(tmp_path, place, value):
    content, vae = torch.load(CHECKPOINT), VAE
    if place == "weight":
        content["state_dict"]["input_blocks.0.0.weight"][0, 0, 0, 0] = value
        message = r"`checkpoint` .*changed\.ckpt.*input_blocks\.0\.0\.weight.*NaN or infinite"
    elif place == "embedding":
        content["empty_text_embedding"][0, 0, 0] = value
        message = r"`empty_text_embedding` in .*changed\.ckpt.*NaN or infinite"
    else:
        vae = shutil.copytree(VAE, tmp_path / "vae")
        rewrite(vae / WEIGHTS, lambda tensors: tensors["decoder.conv_in.bias"].fill_(value))
        message = r"`vae` .*decoder\.conv_in\.bias.*NaN or infinite"
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "changed.ckpt", vae, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_float64_weight_beyond_float32_is_refused(tmp_path):
    content = torch.load(CHECKPOINT)
    content["state_dict"] = {name: tensor.double() for name, tensor in content["state_dict"].items()}
    content["state_dict"]["out.2.bias"][0] = 1e300
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=r"out\.2\.bias.*NaN or infinite"):
        convert_checkpoint(tmp_path / "changed.ckpt", VAE, tmp_path / "out")


# --- Model folders -------------------------------------------------------------------------------------------------


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def folder(pipe, tmp_path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("component", "name"),
    [("unet", "conv_out.bias"), ("vae", "encoder.conv_in.weight"), ("prompt_embedding", "embedding")],
)
def test_a_model_folder_with_weights_that_are_not_finite_is_refused(folder, component, name):
    rewrite(folder / component / WEIGHTS, lambda tensors: tensors[name].view(-1)[0].fill_(float("nan")))
    with pytest.raises(ValueError, match=rf"{folder}/{component}: the weights {name} have NaN or infinite"):
        load_pipeline(folder, "cpu")


def header(path: Path) -> tuple[int, bytes, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return length, content[8 : 8 + length], content[8 + length :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda length, text, data: struct.pack("<Q", length) + text + data[:-1],
        lambda length, text, data: struct.pack("<Q", length) + text + data + b"\0\0",
        lambda length, text, data: struct.pack("<Q", length + 8) + text + data,
        lambda length, text, data: struct.pack("<Q", 2**62) + text + data,
        lambda length, text, data: struct.pack("<Q", length) + text.replace(b'"F32"', b'"F16"', 1) + data,
        lambda length, text, data: struct.pack("<Q", length) + text.replace(b'"F32"', b'"I32"', 1) + data,
        lambda length, text, data: struct.pack("<Q", length) + text.replace(b'"F32"', b'"U32"') + data,
        lambda length, text, data: b"",
    ],
    ids=["short", "long", "header length", "huge header", "dtype of another size", "one integer", "integers", "empty"],
)
def test_a_damaged_safetensors_header_is_refused(folder, damage):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(damage(*header(path)))
    with pytest.raises(ValueError, match=f"model file {path} is damaged"):
        load_model(folder)


def load_model(folder: Path) -> DepthFMPipeline:
    """As a command does."""
    check_model_folder(folder)
    return load_pipeline(folder, "cpu")


def test_weights_in_pickle_files_are_checked_too(pipe, folder):
    (folder / "unet" / WEIGHTS).unlink()
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    torch.save(pipe.unet.state_dict(), path)
    assert isinstance(load_model(folder), DepthFMPipeline)
    repack(path, folder / "packed", compression=zipfile.ZIP_DEFLATED)
    (folder / "packed").replace(path)
    with pytest.raises(ValueError, match=rf"model file {path} .*compressed"):
        check_model_folder(folder)


def test_a_compressed_autoencoder_is_refused(tmp_path):
    vae = shutil.copytree(VAE, tmp_path / "vae")
    torch.save(load_file(vae / WEIGHTS), tmp_path / "plain.bin")
    (vae / WEIGHTS).unlink()
    path = vae / "diffusion_pytorch_model.bin"
    repack(tmp_path / "plain.bin", path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin .*compressed"):
        convert_checkpoint(CHECKPOINT, vae, tmp_path / "out")
