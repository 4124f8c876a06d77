"""Commands take a file of weights as `--model`: it is converted into a cache, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.components import DATA
from safetensors.torch import save_file

from depthfm_diffusers import cli, convert_checkpoint
from depthfm_diffusers.checkpoints import conversion_cache
from depthfm_diffusers.checkpoints.conversion_cache import cache_folder, converted_model

CHECKPOINT = DATA / "parity" / "depthfm-random.ckpt"
VAE = DATA / "parity" / "vae"


@pytest.fixture
def photo(tmp_path, image) -> Path:
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPTHFM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def unet_files(tmp_path_factory) -> dict[str, Path]:
    """The UNet alone, and what it does not say."""
    folder, content = tmp_path_factory.mktemp("files"), torch.load(CHECKPOINT)
    save_file(content["state_dict"], folder / "depthfm-v1_fp16.safetensors")
    save_file({"embedding": content["empty_text_embedding"]}, folder / "embedding.safetensors")
    (folder / "hparams.json").write_text(json.dumps(content["ldm_hparams"]))
    return {
        "model": folder / "depthfm-v1_fp16.safetensors",
        "hparams": folder / "hparams.json",
        "empty-text-embedding": folder / "embedding.safetensors",
    }


def predict(*arguments: object) -> int:
    return cli.main(["predict", *map(str, arguments), "--processing-resolution", "64"])


def test_predict_with_a_checkpoint_is_that_with_its_folder(photo, cache, capsys):
    assert predict(photo, "--model", CHECKPOINT, "--vae", VAE, "--output", "first") == 0
    output = capsys.readouterr()
    assert output.out == "1 of 1 inputs written to first\n"
    assert f"converting {CHECKPOINT} once, to {cache}" in output.err
    (folder,) = cache.iterdir()
    assert folder.name.startswith("depthfm-random-")
    made = folder.stat().st_mtime_ns

    convert_checkpoint(CHECKPOINT, VAE, "converted")
    assert predict(photo, "--model", "converted", "--output", "folder") == 0
    capsys.readouterr()
    assert predict(photo, "--model", CHECKPOINT, "--vae", VAE, "--output", "second") == 0
    assert capsys.readouterr().err == "", "nothing is converted the second time"
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [made]
    maps = [np.load(Path(name) / "photo_log_depth.npy") for name in ("first", "second", "folder")]
    assert np.array_equal(maps[0], maps[1])
    assert np.array_equal(maps[0], maps[2])
    models = [
        json.loads((Path(name) / "metadata.json").read_text())["runs"][0]["model"] for name in ("first", "folder")
    ]
    assert models[0]["sha256"] == models[1]["sha256"]
    assert models[0]["name"] == str(CHECKPOINT)


def test_predict_with_the_unet_alone(photo, unet_files, capsys):
    arguments = [item for name, path in unet_files.items() for item in (f"--{name}", path)]
    assert predict(photo, *arguments, "--vae", VAE, "--output", "out") == 0
    assert "400 is assumed" in capsys.readouterr().err
    assert predict(photo, "--model", CHECKPOINT, "--vae", VAE, "--output", "whole") == 0
    one, other = (np.load(Path(name) / "photo_log_depth.npy") for name in ("out", "whole"))
    assert np.array_equal(one, other)


def test_convert_takes_the_unet_alone(unet_files, capsys):
    arguments = ["convert", "--checkpoint", str(unet_files["model"]), "--vae", str(VAE), "--output", "converted"]
    others = [str(item) for name in ("hparams", "empty-text-embedding") for item in (f"--{name}", unet_files[name])]
    assert cli.main(arguments) == 1
    assert "--hparams FILE" in capsys.readouterr().err, "the random network is too narrow for heads of 64 channels"
    assert cli.main([*arguments, *others, "--noise-augmentation-step", "300"]) == 0
    assert capsys.readouterr() == (f"written to {Path('converted').resolve()}\n", "")
    scheduler = json.loads(Path("converted/scheduler/scheduler_config.json").read_text())
    assert scheduler["noise_augmentation_step"] == 300


def test_the_cache_is_found_by_contents(unet_files, tmp_path, cache):
    said: list[str] = []

    def convert(model: Path, vae: Path = VAE, **changes: object) -> Path:
        options = {"hparams": unet_files["hparams"], "empty_text_embedding": unet_files["empty-text-embedding"]}
        return converted_model(model, vae, on_message=said.append, **{**options, **changes})

    first = convert(unet_files["model"])
    moved = shutil.copy(unet_files["model"], tmp_path / "elsewhere")
    vae = shutil.copytree(VAE, tmp_path / "vae")
    assert convert(Path(moved)).name.rpartition("-")[2] == first.name.rpartition("-")[2]
    assert convert(unet_files["model"], vae) == first
    assert convert(unet_files["model"], noise_augmentation_step=300) != first
    (vae / "config.json").write_text(json.dumps({**json.loads((VAE / "config.json").read_text()), "sample_size": 128}))
    assert convert(unet_files["model"], vae) != first
    assert len(list(cache.iterdir())) == 4
    said.clear()
    (first / "unet" / "config.json").write_text("{")
    assert convert(unet_files["model"]) == first
    assert "converting" in said[0], "what is damaged is made again"
    assert json.loads((first / "unet" / "config.json").read_text())["in_channels"] == 8


def test_a_conversion_that_another_process_was_faster_with(cache, monkeypatch):
    convert = conversion_cache.convert_checkpoint

    def overtaken(checkpoint, vae, output, **options):
        made = convert(checkpoint, vae, output, **options)
        key = conversion_cache._key(Path(checkpoint), Path(vae), {})
        convert(checkpoint, vae, cache / f"{CHECKPOINT.stem}-{key}")
        return made

    monkeypatch.setattr(conversion_cache, "convert_checkpoint", overtaken)
    folder = converted_model(CHECKPOINT, VAE, on_message=list)
    assert list(cache.iterdir()) == [folder]


def test_a_failed_conversion_leaves_nothing_in_the_cache(photo, cache, capsys):
    Path("broken.ckpt").write_bytes(CHECKPOINT.read_bytes()[:-1000])
    assert predict(photo, "--model", "broken.ckpt", "--vae", VAE, "--output", "out") == 1
    assert "broken.ckpt is damaged" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", CHECKPOINT], "name the autoencoder with --vae"),
        (["--model", CHECKPOINT, "--vae", VAE, "--variant", "fp16"], "--variant chooses files of a model folder"),
        (["--vae", VAE, "--trust-pickle"], "--vae, --trust-pickle: only for a file of weights as --model"),
        (["--model", CHECKPOINT, "--vae", "gone"], "`vae` gone is neither a file nor a folder"),
        (["--model", CHECKPOINT, "--vae", VAE, "--hparams", "gone"], "`hparams` gone: there is no such file"),
        (["--model", "gone.safetensors", "--vae", VAE], "gone.safetensors is not a file"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(photo, capsys, arguments, message):
    assert predict(photo, *arguments, "--output", "out") == 1
    assert message in capsys.readouterr().err


def test_bench_takes_a_file_too(cache):
    arguments = ["--repeats", "1", "--steps", "1", "--marigold-steps", "1", "--processing-resolution", "64"]
    assert cli.main(["bench", *arguments, "--model", str(CHECKPOINT), "--vae", str(VAE)]) == 0
    assert len(list(cache.iterdir())) == 1


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DEPTHFM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "depthfm_diffusers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "depthfm_diffusers"


def test_a_cache_that_cannot_be_written_is_named(tmp_path, photo, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DEPTHFM_CACHE", str(tmp_path / "file"))
    assert predict(photo, "--model", CHECKPOINT, "--vae", VAE, "--output", "out") == 1
    assert "Set DEPTHFM_CACHE to another folder" in capsys.readouterr().err
