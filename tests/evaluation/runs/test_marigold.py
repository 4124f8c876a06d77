"""`depthfm evaluate --model` on a folder of diffusers' `MarigoldDepthPipeline`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.marigold import build_marigold
from helpers.shards import sloping_frame, write_pairs
from PIL import Image

from depthfm_diffusers import cli
from depthfm_diffusers.checkpoints.model_folder import DEPTH_MODELS, check_model_folder, load_depth_model
from depthfm_diffusers.evaluation import align
from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.evaluation.metrics.ransac import align_log_ransac
from depthfm_diffusers.evaluation.runs.benchmark import run_evaluation
from depthfm_diffusers.evaluation.runs.scoring import EvaluationSettings, predict_maps
from depthfm_diffusers.inference.prediction import PredictionSettings

MODEL = {"name": "m", "sha256": "0"}


@pytest.fixture(autouse=True)
def _own_accelerate_state(fresh_accelerate_state):
    """Commands make the state of the processes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "marigold"
    build_marigold(path)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs", [sloping_frame(n) for n in range(2)], metadata=True)


@pytest.fixture(scope="module")
def data(pairs):
    return open_benchmark(load_benchmark("pairs"), pairs)


def test_report_has_what_the_pipeline_gives(folder, pairs, data, tmp_path, monkeypatch, capsys):
    """Steps and seed from the flags; both protocols of one call of the pipeline per image; no upper bounds."""
    monkeypatch.chdir(tmp_path)
    given = ["evaluate", "--benchmark", "pairs", "--root", pairs, "--model", folder, "--protocol", "all"]
    given += ["--steps", 3, "--seed", 7, "--device", "cpu", "--limit", 1, "--output", "r.json"]
    assert cli.main(list(map(str, given))) == 0
    report = json.loads(Path("r.json").read_text())
    settings = report["settings"]
    assert settings["model"]["class"] == "MarigoldDepthPipeline"
    assert settings["model"]["prediction_type"] == "depth"
    assert (settings["num_inference_steps"], settings["processing_resolution"], settings["seed"]) == (3, 64, 7)
    assert settings["scheduler"]["class"] == "DDIMScheduler"
    pipe = load_depth_model(folder, "cpu")
    pipe.set_progress_bar_config(disable=True)
    sample = data[0]
    found = pipe(Image.fromarray(sample.image), num_inference_steps=3, generator=torch.Generator().manual_seed(7))
    depth = found.prediction[0, ..., 0]
    expected = {
        "marigold": align(depth, sample.depth, sample.valid, "depth"),
        "ppd": align_log_ransac(depth, sample.depth, sample.valid),
    }
    for name, aligned in expected.items():
        scores = report["per_image"][0]["protocols"][name]
        assert scores["scale"] == pytest.approx(float(aligned.scale), rel=1e-3)
        assert report["protocols"][name]["ceilings"] == {}
    assert "marigold, 3 steps" in capsys.readouterr().out
    assert Path("r.png").is_file()


def test_ensembles_and_repeated_runs(folder, data, tmp_path):
    """The spread is scored from 2 members on; the same seed gives the same numbers, another seed others."""
    pipe = load_depth_model(folder, "cpu")
    pipe.set_progress_bar_config(disable=True)

    def run(name: str, seed: int, **settings: int) -> dict:
        prediction = PredictionSettings(1, seed=seed, processing_resolution=32, **settings)
        evaluated = EvaluationSettings(prediction, alignment="depth", limit=1)
        return run_evaluation(pipe, data, evaluated, tmp_path / f"{name}.json", MODEL)

    assert run("a", 1)["per_image"] == run("b", 1)["per_image"] != run("c", 2)["per_image"]
    assert "ause" in run("d", 1, ensemble_size=3)["mean"]


@pytest.mark.parametrize("space", ["log", "none", "disparity", None])
def test_spaces_that_need_the_offset_are_refused_before_anything_is_computed(folder, data, tmp_path, space):
    with pytest.raises(ValueError, match=r"A MarigoldDepthPipeline predicts depth up to scale and shift.*--protocol"):
        run_evaluation(load_depth_model(folder, "cpu"), data, EvaluationSettings(alignment=space), tmp_path / "r", MODEL)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_disparity_is_aligned_in_disparity(folder, data, tmp_path):
    pipe = load_depth_model(folder, "cpu")
    pipe.register_to_config(prediction_type="disparity")
    pipe.set_progress_bar_config(disable=True)
    maps = predict_maps(pipe, data[0].image, PredictionSettings(1, processing_resolution=32))
    assert np.array_equal(maps.in_space("log_plus_one"), -maps.in_space("disparity"))
    with pytest.raises(ValueError, match="cannot be aligned in depth: choose `alignment` 'disparity' or `protocol` 'ppd'"):
        run_evaluation(pipe, data, EvaluationSettings(protocol="all"), tmp_path / "r.json", MODEL)
    pipe.register_to_config(prediction_type=None)
    with pytest.raises(ValueError, match="`prediction_type` is None"):
        run_evaluation(pipe, data, EvaluationSettings(protocol="all"), tmp_path / "r.json", MODEL)


def test_output_that_is_not_finite_is_an_error(folder, data):
    pipe = load_depth_model(folder, "cpu")
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.decoder.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        predict_maps(pipe, data[0].image, PredictionSettings(1, processing_resolution=32))


def test_folders_of_other_classes_are_refused_with_those_that_are_understood(folder, tmp_path, capsys):
    base = folder.with_name("marigold-base")
    given = ["evaluate", "--benchmark", "pairs", "--root", tmp_path, "--model", base, "--output", tmp_path / "r.json"]
    write_pairs(tmp_path, [sloping_frame(0)])
    assert cli.main(list(map(str, given))) == 1
    message = capsys.readouterr().err
    assert "model_index.json says 'StableDiffusionPipeline', not 'DepthFMPipeline' or 'MarigoldDepthPipeline'" in message
    with pytest.raises(ValueError, match="says 'MarigoldDepthPipeline', not 'DepthFMPipeline': "):
        check_model_folder(folder)
    check_model_folder(folder, DEPTH_MODELS)


def test_a_folder_without_text_encoder_is_named(folder, tmp_path):
    pipe = load_depth_model(folder, "cpu")
    pipe.register_modules(text_encoder=None, tokenizer=None)
    pipe.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare cannot be loaded: .* expected .*'text_encoder', 'tokenizer'"):
        load_depth_model(tmp_path / "bare", "cpu")
