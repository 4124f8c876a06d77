"""Reports and records of 0.4.0 in tests/data/reports: what is written today is the same, key by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.components import DATA, build_components
from helpers.controlnet_parts import build_image, build_pipelines
from helpers.shards import png, sloping_frame, write_pairs

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.evaluation.adherence import measures
from depthfm_diffusers.evaluation.adherence.images import PromptedImage
from depthfm_diffusers.evaluation.adherence.measures import AdherenceSettings
from depthfm_diffusers.evaluation.adherence.run import run_adherence
from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.evaluation.runs.benchmark import run_evaluation
from depthfm_diffusers.evaluation.runs.scoring import EvaluationSettings
from depthfm_diffusers.inference.prediction import PredictionSettings
from depthfm_diffusers.inference.prediction_files import describe_run
from depthfm_diffusers.inference.synthesis_files import describe_synthesis
from depthfm_diffusers.inference.synthesis_inputs import SynthesisSources
from depthfm_diffusers.inference.synthesis_settings import SynthesisSettings

REPORTS = DATA / "reports"
# Written since 0.5: names of images that the reader of the means must know of.
ADDED = ("images_with_few_pixels", "images_upside_down")
# Measures since 0.6.
ADDED_MEASURES = ("see3", "see5", "see7", "abs_rel_edges", "abs_rel_away")
# What differs between machines, versions and days: of these only the names and the types are compared.
VARIES = ("versions", "time", "started", "weights", "fingerprint")


def assert_same(found: Any, expected: Any, name: str = "") -> None:
    """Compares keys and their order, types, and values: numbers to a thousandth."""
    assert type(found) is type(expected), name
    if isinstance(expected, dict):
        assert list(found) == list(expected), name
        for key, value in expected.items():
            assert_same(found[key], value, f"{name}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for index, value in enumerate(expected):
            assert_same(found[index], value, f"{name}[{index}]")
    elif not any(f".{part}" in name for part in VARIES):
        assert found == (pytest.approx(expected, rel=1e-3, abs=1e-3) if isinstance(expected, float) else expected), name


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same_report(path: Path, name: str) -> None:
    """Compares a report with that of 0.4.0, apart from what has been added to it."""
    found, expected = read(path), read(REPORTS / f"{name}.json")
    if name == "evaluate":
        place = list(expected).index("images_without_depth") + 1
        assert tuple(found)[place : place + len(ADDED)] == ADDED
        swapped = [one["key"] for one in expected["per_image"] if one.get("scale", 0) < 0]
        assert [found.pop(key) for key in ADDED] == [[], swapped]
        parts = [found["mean"], found["interval"], found["counts"], *(one["mean"] for one in found["ceilings"].values())]
        parts += [part for one in found["per_image"] if "abs_rel" in one for part in (one, *one["ceilings"].values())]
        for part in parts:
            for measure in ADDED_MEASURES:
                del part[measure]
    assert_same(found, expected)


def evaluate(folder: Path, output: Path) -> None:
    """Evaluates three frames, the second without depth."""
    frames = [sloping_frame(number) for number in range(3)]
    frames[1]["depth.png"] = png(np.zeros((48, 64), np.uint16))
    data = open_benchmark(load_benchmark("pairs"), write_pairs(folder / "pairs", frames, metadata=True))
    pipe = DepthFMPipeline(**build_components(), default_processing_resolution=64)
    pipe.set_progress_bar_config(disable=True)
    settings = EvaluationSettings(PredictionSettings(ensemble_size=2, seed=1))
    model = {"name": "m", "sha256": "0", "variant": None}
    run_evaluation(pipe, data, settings, output, model)


def adhere(folder: Path, output: Path) -> None:
    """Measures the adherence of two photos."""
    folder.mkdir()
    images = []
    for number in range(2):
        path = folder / f"photo{number}.png"
        build_image(number).save(path)
        images.append(PromptedImage(path.name, path, "a" * number))
    settings = AdherenceSettings(num_inference_steps=2, guidance_scale=2.0, depth=PredictionSettings(seed=1))
    run_adherence(build_pipelines()[0], images, settings, output, {"base": "tiny"})


@pytest.mark.parametrize(("name", "run"), [("evaluate", evaluate), ("adherence", adhere)])
def test_report_is_that_of_0_4(name, run, tmp_path, monkeypatch):
    # 0.4.0 drew the noise of the depth from the seed of the first image.
    monkeypatch.setattr(measures, "depth_seed", lambda seed: seed)
    run(tmp_path / "data", tmp_path / "report.json")
    assert_same_report(tmp_path / "report.json", name)


def test_records_of_results_are_those_of_0_4(pipe, tmp_path):
    expected = read(REPORTS / "metadata.json")
    run = describe_run(pipe, PredictionSettings(ensemble_size=2), "m", "0")
    run["settings"]["colormap"] = "Spectral"
    assert_same(json.loads(json.dumps(run)), expected["predict"])
    settings, sources = SynthesisSettings(prompt="a"), SynthesisSources([tmp_path / "photo.png"])
    models = {"base": {"name": "b"}, "variant": None}
    run = describe_synthesis(build_pipelines()[0], settings, models, sources)
    assert_same(json.loads(json.dumps(run)), expected["synthesize"])
