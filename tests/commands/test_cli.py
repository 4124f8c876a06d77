"""The command line, run in this process on a tiny random model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.components import DATA
from helpers.repository import ROOT
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, __version__, cli
from depthfm_diffusers.image_processing import load_image
from depthfm_diffusers.inference import prediction_files
from depthfm_diffusers.inference.input_files import collect_inputs
from depthfm_diffusers.inference.prediction import Prediction
from depthfm_diffusers.inference.prediction_files import SUFFIXES, PredictionFolder

COMMANDS = ["predict", "convert", "evaluate", "compare", "synthesize", "adherence", "bench"]


@pytest.fixture
def photo(tmp_path, image) -> Path:
    path = tmp_path / "in" / "photo.png"
    path.parent.mkdir()
    image.save(path)
    return path


@pytest.fixture
def predict(model, tmp_path, monkeypatch):
    """Runs `depthfm predict ... --output out --model TINY` in the temporary folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, model: Path = model) -> int:
        return cli.main(["predict", *map(str, arguments), "--output", "out", "--model", str(model)])

    return run


def read_metadata(folder: Path) -> dict:
    return json.loads((folder / "metadata.json").read_text(encoding="utf-8"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def copies(photo: Path, *targets: str) -> list[Path]:
    paths = [photo.parent / target for target in targets]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        load_image(photo).convert("RGB").save(path)
    return paths


# predict: what is written


def test_predict_writes_what_the_pipeline_returns(predict, photo, model, tmp_path, image, capsys):
    assert predict(photo, "--steps", 3, "--seed", 7) == 0
    assert capsys.readouterr() == ("1 of 1 inputs written to out\n", "")
    out = tmp_path / "out"
    assert names(out) == sorted(["metadata.json", *("photo" + suffix for suffix in SUFFIXES)])
    expected = DepthFMPipeline.from_pretrained(model)(
        image, num_inference_steps=3, generator=torch.Generator().manual_seed(7)
    )
    depth = np.load(out / "photo_depth.npy", allow_pickle=False)
    assert depth.dtype == np.float32
    assert depth.shape == (48, 72)
    assert depth.min() == 0
    assert depth.max() == 1
    np.testing.assert_allclose(depth, expected.prediction[0, ..., 0], atol=1e-6)
    log_depth = np.load(out / "photo_log_depth.npy", allow_pickle=False)
    np.testing.assert_allclose(log_depth, expected.log_depth[0, ..., 0], atol=1e-6)
    with Image.open(out / "photo_depth.png") as picture:
        assert picture.mode == "I;16"
        np.testing.assert_allclose(np.asarray(picture) / 65535, depth, atol=1e-5)
    with Image.open(out / "photo_color.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (72, 48))


def test_metadata_says_how_to_repeat(predict, photo, tmp_path):
    assert predict(photo, "--ensemble", 2, "--seed", 3) == 0
    first = read_metadata(tmp_path / "out")
    (run,) = first["runs"]
    assert run["settings"] == {
        "num_inference_steps": 2,
        "ensemble_size": 2,
        "seed": 3,
        "processing_resolution": 64,
        "batch_size": 1,
        "colormap": "Spectral",
    }
    assert run["versions"]["torch"] == torch.__version__
    assert run["dtype"] == "float32"
    assert len(run["model"]["sha256"]) == 64
    (entry,) = first["images"]
    assert (entry["input"], entry["height"], entry["width"]) == (str(photo), 48, 72)
    assert set(first["values"]) == set(SUFFIXES)
    content = (tmp_path / "out" / "photo_log_depth.npy").read_bytes()
    assert predict(photo, "--ensemble", 2, "--seed", 3) == 0
    assert (tmp_path / "out" / "photo_log_depth.npy").read_bytes() == content
    assert predict(photo, "--ensemble", 2, "--seed", 4) == 0
    assert (tmp_path / "out" / "photo_log_depth.npy").read_bytes() != content
    assert [run["settings"]["seed"] for run in read_metadata(tmp_path / "out")["runs"]] == [4]


def test_a_result_does_not_depend_on_the_other_inputs(predict, photo, tmp_path):
    (other,) = copies(photo, "other.png")
    assert predict(photo) == 0
    alone = np.load(tmp_path / "out" / "photo_log_depth.npy")
    shutil.rmtree(tmp_path / "out")
    assert predict(other, photo) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "photo_log_depth.npy"), alone)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype(predict, photo, tmp_path, dtype):
    assert predict(photo, "--dtype", dtype, "--device", "cpu") == 0
    assert read_metadata(tmp_path / "out")["runs"][0]["dtype"] == dtype


# predict: names


@pytest.mark.parametrize(
    "files",
    [
        ("a.jpg", "a.png"),
        ("a.jpg", "x/a.jpg", "y/a.jpg"),
        ("a.jpg", "a_log.jpg"),
        ("a.jpg", "A.jpg"),
        ("a.png", "a_png.jpg", "a_2.jpg", "a.jpg"),
        ("stra\N{LATIN SMALL LETTER SHARP S}e.png", "STRASSE.png"),
    ],
)
def test_colliding_names_are_all_written(predict, photo, tmp_path, files):
    inputs = pictures_of_noise(photo.parent, files)
    assert predict(*inputs) == 0
    images = read_metadata(tmp_path / "out")["images"]
    assert [entry["input"] for entry in images] == [str(path) for path in inputs]
    written = [file for entry in images for file in entry["files"]]
    assert len({file.casefold() for file in written}) == 4 * len(files)
    assert names(tmp_path / "out") == sorted([*written, "metadata.json"])
    for entry in images:
        depth = np.load(tmp_path / "out" / entry["files"][0])
        assert depth.shape == (entry["height"], entry["width"])


def pictures_of_noise(folder: Path, files: tuple[str, ...]) -> list[Path]:
    """Pictures of different sizes, so that results can be told apart."""
    paths = []
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((40 + number, 30), 60).convert("RGB").save(path)
        paths.append(path)
    return paths


def test_names_stay_the_same_from_run_to_run(predict, photo, tmp_path):
    first, second = copies(photo, "a.jpg", "a.png")
    assert predict(first, second) == 0
    before = names(tmp_path / "out")
    assert predict(second) == 0
    assert predict(second, first) == 0
    assert names(tmp_path / "out") == before


def test_an_earlier_result_for_another_file_is_kept(predict, photo, tmp_path):
    first, second = copies(photo, "x/a.jpg", "y/a.jpg")
    assert predict(first, "--seed", 1) == 0
    content = (tmp_path / "out" / "a_depth.npy").read_bytes()
    assert predict(second, "--seed", 2) == 0
    assert (tmp_path / "out" / "a_depth.npy").read_bytes() == content
    metadata = read_metadata(tmp_path / "out")
    seeds = {entry["input"]: metadata["runs"][entry["run"]]["settings"]["seed"] for entry in metadata["images"]}
    assert seeds == {str(first): 1, str(second): 2}


def test_inputs_in_the_output_folder_are_never_overwritten(predict, photo, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.png", "a_depth.png"):
        shutil.copy(photo, out / name)
    assert predict("out") == 0
    assert (out / "a_depth.png").read_bytes() == photo.read_bytes()
    assert len(read_metadata(out)["images"]) == 2
    before = names(out)
    assert predict("out") == 0, "the results of the first run are not inputs of the second"
    assert names(out) == before


def test_an_input_given_twice_is_predicted_once(predict, photo, tmp_path):
    assert predict(photo, photo.parent, photo.parent / ".." / "in" / "photo.png", photo.parent / "*.png") == 0
    assert len(read_metadata(tmp_path / "out")["images"]) == 1


def test_metadata_of_other_origin_is_not_overwritten(predict, photo, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metadata.json").write_text('{"mine": 1}')
    assert predict(photo) == 1
    assert "metadata.json was not written by `depthfm predict`" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["metadata.json"]


# predict: inputs


def test_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "deep/c.webp", "deep/x[1].png", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*arguments: str) -> list[str]:
        files, failures = collect_inputs(arguments)
        assert not failures
        return [path.relative_to(tmp_path).as_posix() for path in files]

    assert found(".") == ["a.png", "b.JPG"]
    assert found("deep", "a.png") == ["deep/c.webp", "deep/x[1].png", "a.png"]
    assert found("**/*.webp") == ["deep/c.webp"]
    assert found("deep/x[1].png") == ["deep/x[1].png"]
    assert found("notes.txt") == ["notes.txt"], "a file that is named is taken whatever its suffix"
    files, failures = collect_inputs(["empty", "*.gif", "gone.png", "a.png"])
    assert [path.name for path in files] == ["a.png"]
    assert [failure.name for failure in failures] == ["empty", "*.gif", "gone.png"]
    assert "no image files" in failures[0].reason
    assert "matches no file" in failures[1].reason
    assert "no such file" in failures[2].reason


def test_bad_inputs_are_named_and_do_not_stop_the_others(predict, photo, tmp_path, capsys):
    (jpeg,) = copies(photo, "whole.jpg")
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(jpeg.read_bytes()[:-300])
    text = tmp_path / "text.png"
    text.write_text("not an image")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert predict(truncated, text, "missing.png", empty, "*.nothing", photo) == 1
    captured = capsys.readouterr()
    for name, reason in {
        "truncated.jpg": "damaged or incomplete",
        "text.png": "not an image",
        "missing.png": "no such file",
        "empty": "no image files",
        "*.nothing": "matches no file",
    }.items():
        (line,) = [line for line in captured.err.splitlines() if name in line]
        assert reason in line
    assert "Traceback" not in captured.err
    assert captured.out == "1 of 6 inputs written to out\n"
    assert names(tmp_path / "out") == sorted(["metadata.json", *("photo" + suffix for suffix in SUFFIXES)])


def test_nothing_to_predict_needs_no_model(predict, tmp_path, capsys):
    assert predict("missing.png", model=tmp_path / "no-model") == 1
    assert "no-model" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1"])
def test_file_modes(predict, tmp_path, mode):
    if mode == "I;16":
        picture = Image.fromarray((np.arange(600).reshape(20, 30) * 100).astype(np.uint16))
    else:
        picture = Image.effect_noise((30, 20), 60).convert("RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    assert predict(path) == 0
    assert np.load(tmp_path / "out" / "a_depth.npy").shape == (20, 30)


# predict: failures


def test_output_that_cannot_be_written_is_found_before_the_model_is_loaded(photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    for output in ("file", "file/deeper"):
        assert cli.main(["predict", str(photo), "--output", output, "--model", "no-model"]) == 1
        message = capsys.readouterr().err
        assert "output folder" in message
        assert "file" in message
        assert "no-model" not in message
        assert "Traceback" not in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda m: (m / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 64),
            "model.safetensors",
        ),
        (lambda m: _truncate(m / "vae" / "diffusion_pytorch_model.safetensors"), "model.safetensors"),
        (lambda m: (m / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "unet"),
        (lambda m: (m / "unet" / "config.json").write_text("{"), "config.json"),
        (lambda m: (m / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda m: shutil.rmtree(m / "scheduler"), "scheduler/ is missing"),
        (lambda m: shutil.rmtree(m), "no such folder"),
        (lambda m: (m / "model_index.json").write_text('{"_class_name": "MarigoldDepthPipeline"}'), "depthfm convert"),
    ],
)
def test_broken_models_are_explained(predict, photo, model, tmp_path, capsys, damage, message):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    damage(broken)
    assert predict(photo, model=broken) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(broken) in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_interruption_leaves_whole_results(predict, photo, tmp_path, monkeypatch, capsys):
    first, second = copies(photo, "first.png", "second.png")
    save_image = prediction_files.save_image

    def interrupting(path, array):
        if path.name == "second_color.png":  # the last file of the second result
            raise KeyboardInterrupt
        save_image(path, array)

    monkeypatch.setattr(prediction_files, "save_image", interrupting)
    assert predict(first, second) == 130
    assert "interrupted" in capsys.readouterr().err
    assert names(tmp_path / "out") == sorted(["metadata.json", *("first" + suffix for suffix in SUFFIXES)])
    assert [entry["name"] for entry in read_metadata(tmp_path / "out")["images"]] == ["first"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "a.png"],
        ["predict", "a.png", "--output", "out", "--steps", "0"],
        ["predict", "a.png", "--output", "out", "--ensemble", "none"],
        ["predict", "a.png", "--output", "out", "--dtype", "int8"],
        ["evaluate"],
        [],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: depthfm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["predct"], "did you mean predict?"),
        (["predict", "a.png", "--output", "out", "--dtype", "flaot32"], "did you mean float32?"),
        (["quux"], "invalid choice: 'quux'"),
    ],
)
def test_a_mistyped_choice_gets_a_suggestion(arguments, hint, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert hint in error
    assert ("did you mean" in error) == ("did you mean" in hint)


def test_help_and_usage_errors_import_nothing_but_this_package(tmp_path):
    """Whatever the command line says before a command runs, it says at once."""
    program = """
import sys
at_start = set(sys.modules)
from depthfm_diffusers import cli

for arguments in {calls!r}:
    try:
        cli.main(arguments)
    except SystemExit as exit:
        print(exit.code or 0, file=sys.stderr)
    imported = {{name.partition(".")[0] for name in set(sys.modules) - at_start}} - set(sys.stdlib_module_names)
    assert imported == {{"depthfm_diffusers"}}, (arguments, imported)
own = [name for name in sys.modules if name.startswith("depthfm_diffusers")]
assert len(own) < 40, own
"""
    help_calls = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS), ["evaluate", "--list"]]
    wrong_calls = [
        [],
        ["predct"],
        ["--nonsense"],
        ["predict", "a.png"],
        ["predict", "a.png", "--output", "out", "--setps", "2"],
        ["predict", "a.png", "--output", "out", "--dtype", "int8"],
        ["evaluate", "--benchmark", "nyuv2", "--root", ".", "--output", "a.json", "--alignment", "none_such"],
        ["synthesize", "a.png", "--base", "b", "--prompt", "", "--output", "out", "--strength", "0.5"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", program.format(calls=help_calls + wrong_calls)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = [int(line) for line in done.stderr.splitlines() if line.isdigit()]
    assert codes == [0] * len(help_calls) + [2] * len(wrong_calls)


def test_unknown_colormap_and_device(predict, photo, tmp_path, capsys):
    assert predict(photo, "--colormap", "rainbows") == 1
    assert "'rainbows'" in capsys.readouterr().err
    assert predict(photo, "--device", "toaster") == 1
    assert "'toaster'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folder_cannot_hold_two_runs_with_the_same_number(tmp_path):
    folder = PredictionFolder(tmp_path, "gray")
    depth = np.zeros((2, 2), dtype=np.float32)
    for number, name in enumerate(["a", "b", "a"]):
        source = tmp_path / f"{name}.png"
        source.touch()
        folder.begin_run({"settings": number}, [source])
        folder.add_prediction(source, Prediction(depth, depth))
    folder.close()
    metadata = read_metadata(tmp_path)
    assert [metadata["runs"][entry["run"]]["settings"] for entry in metadata["images"]] == [1, 2]
    assert len(metadata["runs"]) == 2


# other commands


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_defaults(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command, "--help"])
    assert exit_info.value.code == 0
    assert "(default: " in capsys.readouterr().out


def test_commands_and_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = capsys.readouterr().out
    assert all(command in commands for command in COMMANDS)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"depthfm {__version__}\n"


def test_convert_then_predict(tmp_path, photo, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parity = DATA / "parity"
    arguments = ["convert", "--checkpoint", str(parity / "depthfm-random.ckpt"), "--vae", str(parity / "vae")]
    assert cli.main([*arguments, "--output", "converted", "--rescale-self-attention", "--variant", "fp16"]) == 0
    assert "written to" in capsys.readouterr().out
    assert json.loads((tmp_path / "converted" / "model_index.json").read_text())["rescale_self_attention"] is True
    assert cli.main([*arguments, "--output", "converted"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*arguments, "--output", "converted", "--overwrite"]) == 0
    arguments = ["predict", str(photo), "--model", "converted", "--output", "out", "--processing-resolution", "64"]
    assert cli.main(arguments) == 0
    assert cli.main(["convert", "--checkpoint", "gone.ckpt", "--vae", "gone", "--output", "x"]) == 1
    assert "gone" in capsys.readouterr().err


def test_bench(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--model", str(model), "--repeats", "2", "--output", "bench.json"]) == 0
    table = capsys.readouterr().out
    report = json.loads(Path("bench.json").read_text())
    rows = {(row["method"], row["steps"]): row for row in report["rows"]}
    assert list(rows) == [
        ("DepthFM", 1),
        ("DepthFM", 2),
        ("Marigold (DDIM)", 1),
        ("Marigold (DDIM)", 4),
        ("Marigold (DDIM)", 10),
    ]
    for (method, steps), row in rows.items():
        assert row["evaluations"] == steps
        assert 0 < row["evaluation_ms"] < row["total_ms"]
        assert row["encode_ms"] + row["decode_ms"] < row["total_ms"]
        assert row["ratio"] == pytest.approx(row["total_ms"] / rows["DepthFM", 1]["total_ms"])
        assert method in table


def test_as_a_module():
    """tests/repository/test_package.py has a prediction in a process of its own, with nothing on stderr."""
    command = [sys.executable, "-m", "depthfm_diffusers.cli", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"depthfm {__version__}\n", "")
