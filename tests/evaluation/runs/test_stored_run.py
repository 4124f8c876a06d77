"""`depthfm evaluate --predictions`: maps that anything made are scored as a model's are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.components import build_components
from helpers.shards import sloping_frame, write_pairs
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, cli
from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.evaluation.data.stored_predictions import StoredPredictions
from depthfm_diffusers.inference.prediction import predict_image

KEYS = ["a", "b/c"]


@pytest.fixture(autouse=True)
def _own_accelerate_state(fresh_accelerate_state):
    """Commands make the state of the processes."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    return write_pairs(folder, [sloping_frame(number) for number in range(3)], metadata=True)


@pytest.fixture
def evaluate(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> dict:
        given = ["evaluate", "--benchmark", "pairs", "--root", pairs, "--output", "r.json"]
        assert cli.main([*map(str, given), *map(str, words)]) == 0
        return json.loads(Path("r.json").read_text())

    return run


@pytest.mark.parametrize("space", ["log", "depth", "disparity", "none"])
def test_stored_predictions_get_the_scores_of_their_model(evaluate, pairs, tmp_path, space, capsys):
    """Also with a picture; upper bounds are a model's, and not there."""
    pipe = DepthFMPipeline(**build_components(), default_processing_resolution=64)
    pipe.save_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    for sample in open_benchmark(load_benchmark("pairs"), pairs):
        np.save(f"{sample.key}_log_depth.npy", predict_image(pipe, sample.image).log_depth)
    expected = evaluate("--model", tmp_path / "model", "--alignment", space, "--device", "cpu")
    capsys.readouterr()
    found = evaluate("--predictions", "{name}_log_depth.npy", "--prediction-form", "log", "--alignment", space)
    assert found["ceilings"] == {}
    assert found["mean"].keys() == expected["mean"].keys()
    for name, value in expected["mean"].items():
        assert found["mean"][name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert found["settings"]["predictions"]["form"] == "log"
    text = capsys.readouterr().out
    assert "{name}_log_depth.npy (log)" in text
    assert "upper bounds" not in text
    assert Path("r.png").is_file()


@pytest.mark.parametrize("form", ["depth", "log", "disparity"])
@pytest.mark.parametrize("ending", [".npy", ".png"])
def test_the_truth_up_to_scale_and_shift_is_perfect(evaluate, pairs, tmp_path, form, ending):
    """In its own space, whatever the scale and the shift; a 16-bit picture up to its rounding."""
    (tmp_path / "maps").mkdir()
    function = {"depth": lambda d: d, "log": np.log, "disparity": lambda d: 1 / d}[form]
    for sample in open_benchmark(load_benchmark("pairs"), pairs):
        values = function(np.where(sample.valid, sample.depth, 1).astype(np.float64))
        values = (values - values.min()) / np.ptp(values)
        if ending == ".npy":
            np.save(tmp_path / "maps" / f"{sample.key}.npy", 3 * values[None] - 7)
        else:
            Image.fromarray((60000 * values + 5).round().astype(np.uint16)).save(tmp_path / "maps" / f"{sample.key}.png")
    report = evaluate("--predictions", "maps", "--prediction-form", form, "--alignment", form)
    assert report["mean"]["abs_rel"] < (1e-6 if ending == ".npy" else 1e-3)
    assert report["mean"]["delta1"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prediction-form", "log"], "argument --prediction-form: needs --predictions"),
        (["--predictions", "x", "--steps", "2"], "argument --steps: no model is used with --predictions"),
        (["--predictions", "x", "--model", "y"], "argument --model: no model is used with --predictions"),
        (["--predictions", "x", "--ensemble", "2"], "argument --ensemble: no model is used with --predictions"),
    ],
)
def test_arguments_of_a_model_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--benchmark", "pairs", "--root", ".", "--output", "r.json", *words])
    assert message in capsys.readouterr().err


def test_missing_predictions_are_named_before_anything_is_computed(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no prediction: b/c\. .*b/c\.npy and .*b/c\.png;"):
        StoredPredictions(str(tmp_path), "depth", KEYS)
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no prediction: b/c\. .*c\.npy;"):
        StoredPredictions(f"{tmp_path}/{{name}}.npy", "depth", KEYS)
    with pytest.raises(ValueError, match=r"a\.npy is the prediction of both 'a' and 'b/a'"):
        StoredPredictions(f"{tmp_path}/{{name}}.npy", "depth", ["a", "b/a"])
    with pytest.raises(ValueError, match="`form` must be one of"):
        StoredPredictions(str(tmp_path), "metres", ["a"])


@pytest.mark.parametrize(
    ("content", "form", "space", "message"),
    [
        (np.ones((3, 2)), "depth", "depth", r"a\.npy is 3x2, the image is 2x3"),
        (np.ones((2, 3, 3)), "depth", "depth", r"a\.npy holds float64 of shape \(2, 3, 3\), not one map"),
        (np.ones((2, 3), bool), "depth", "depth", r"a\.npy holds bool"),
        (np.array([[{}]]), "depth", "depth", r"a\.npy is not a readable"),
        (np.zeros((2, 3)), "depth", "log", r"values that are not positive.*--alignment depth"),
        (np.zeros((2, 3)), "disparity", "depth", r"values that are not positive.*--alignment disparity"),
    ],
)
def test_unusable_maps_are_named(tmp_path, content, form, space, message):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        StoredPredictions(str(tmp_path), form, ["a"]).read("a", (2, 3), space)


def test_forms_are_converted(tmp_path):
    depth = np.array([[1.0, 2.0, 4.0]])
    np.save(tmp_path / "a.npy", depth)
    np.save(tmp_path / "b.npy", 1 / depth)

    def read(key: str, form: str, space: str) -> np.ndarray:
        return StoredPredictions(str(tmp_path), form, [key]).read(key, (1, 3), space)

    for key, form in (("a", "depth"), ("b", "disparity")):
        np.testing.assert_allclose(read(key, form, "depth"), depth)
        np.testing.assert_allclose(read(key, form, "none"), depth)
        np.testing.assert_allclose(read(key, form, "log"), np.log(depth))
        np.testing.assert_allclose(read(key, form, "disparity"), 1 / depth)


def test_a_picture_of_8_bits_is_refused(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has mode 'L'"):
        StoredPredictions(str(tmp_path), "depth", ["a"]).read("a", (2, 3), "depth")


def test_other_predictions_are_another_run(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    first = StoredPredictions(str(tmp_path), "depth", ["a"]).fingerprint()
    assert StoredPredictions(str(tmp_path), "log", ["a"]).fingerprint() != first
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    assert StoredPredictions(str(tmp_path), "depth", ["a"]).fingerprint() != first
