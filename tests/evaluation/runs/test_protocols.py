"""`--protocol`: one set of predictions by the protocols of the field, side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_folders import diode_files, write_folder
from helpers.shards import sloping_frame, write_pairs
from scipy import ndimage

from depthfm_diffusers import cli
from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.evaluation.data.stored_predictions import StoredPredictions
from depthfm_diffusers.evaluation.metrics.metrics import all_metrics
from depthfm_diffusers.evaluation.metrics.ransac import align_log_ransac
from depthfm_diffusers.evaluation.runs import benchmark, scoring
from depthfm_diffusers.evaluation.runs.comparison import compare_reports, format_comparison, read_report
from depthfm_diffusers.evaluation.runs.protocol_report import format_protocols
from depthfm_diffusers.evaluation.runs.scoring import EvaluationSettings
from depthfm_diffusers.evaluation.runs.stored_run import evaluate_predictions
from depthfm_diffusers.inference.prediction import PredictionSettings, predict_image

MODEL = {"name": "m", "sha256": "0"}


@pytest.fixture(autouse=True)
def _own_accelerate_state(fresh_accelerate_state):
    """Commands make the state of the processes."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_pairs(tmp_path_factory.mktemp("data") / "pairs", [sloping_frame(n) for n in range(3)], metadata=True)
    return open_benchmark(load_benchmark("pairs"), root)


@pytest.fixture
def evaluate(pipe, data, tmp_path):
    """Calls `run_evaluation` with one step."""

    def run(name: str, on_progress=None, **settings) -> dict:
        evaluated = EvaluationSettings(PredictionSettings(1), **settings)
        return benchmark.run_evaluation(pipe, data, evaluated, tmp_path / f"{name}.json", MODEL, on_progress=on_progress)

    return run


def test_all_protocols_are_scored_from_one_prediction(evaluate, pipe, data, tmp_path, monkeypatch):
    """`marigold` has the numbers of --alignment depth; `ppd` those of its parts."""
    calls = []

    def predict(*arguments):
        calls.append(arguments)
        return predict_image(*arguments)

    monkeypatch.setattr(scoring, "predict_image", predict)
    report = evaluate("all", protocol="all")
    assert len(calls) == len(data)
    plain = evaluate("plain", alignment="depth")
    shared = ["images", "images_upside_down", "mean", "interval", "counts", "ceilings"]
    assert {name: report["protocols"]["marigold"][name] for name in shared} == {name: plain[name] for name in shared}
    assert list(report["protocols"]) == list(report["settings"]["protocols"]) == ["marigold", "ppd"]
    assert not {"mean", "images", "ceilings"} & report.keys(), "no number without its protocol"
    assert report["settings"]["protocols"]["marigold"]["alignment_method"] == "least_squares"
    described = report["settings"]["protocols"]["ppd"]
    assert (described["alignment"], described["alignment_method"]) == ("log_plus_one", "ransac")
    assert (described["max_trials"], described["seed"], described["max_gradient"]) == (1000, 0, None)
    assert {"scikit-learn", "scipy"} <= report["versions"].keys()
    for sample, entry, one in zip(data, report["per_image"], plain["per_image"], strict=True):
        assert entry["protocols"]["marigold"] == {name: value for name, value in one.items() if name != "key"}
        log_depth = predict_image(pipe, sample.image, PredictionSettings(1)).log_depth
        aligned = align_log_ransac(log_depth, sample.depth, sample.valid)
        scores = entry["protocols"]["ppd"]
        assert scores["fit"] == aligned.fit
        for name, value in all_metrics(aligned.depth, sample.depth, sample.valid, sample.intrinsics).items():
            assert scores[name] == pytest.approx(float(value), rel=1e-3, abs=1e-4, nan_ok=True), name
        assert set(scores["ceilings"]) == {"normalized", "autoencoded"}
        assert scores["ceilings"]["normalized"]["abs_rel"] < 0.1


def test_a_stopped_run_is_resumed(evaluate, tmp_path):
    whole = evaluate("whole", protocol="ppd")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate("stopped", stop, protocol="ppd")
    with pytest.raises(ValueError, match=r"results of another evaluation.*settings\.protocols\.marigold"):
        evaluate("stopped", protocol="all")
    resumed = evaluate("stopped", protocol="ppd")
    assert {**resumed, "time": None} == {**whole, "time": None}


def test_each_protocol_has_its_own_columns(evaluate, capsys):
    report = evaluate("all", protocol="all")
    lines = format_protocols(report).splitlines()
    assert "marigold  depth by least squares, 3 images" in lines[1]
    assert "ppd       log(depth + 1) by RANSAC, 3 images" in lines[2]
    row = next(line for line in lines if line.startswith("m, 1 step"))
    means = [report["protocols"][name]["mean"] for name in ("marigold", "ppd")]
    expected = [f"{mean[measure]:.3f}" for mean in means for measure in ("abs_rel", "delta1", "rmse")]
    assert row.split()[-6:] == expected
    output = next(line for line in lines if "... + exp, min-max" in line)
    assert output.split()[-3:] == ["-", "-", "-"], "no upper bound of ppd"
    abs_rel = next(line for line in lines if line.startswith("  abs_rel "))
    assert all(f"{mean['abs_rel']:.3f} [" in abs_rel for mean in means)
    assert "Numbers of different protocols do not compare" in "\n".join(lines)
    assert max(map(len, lines)) <= 119
    alone = format_protocols(evaluate("ppd", protocol="ppd"))
    assert "marigold" not in alone
    assert "do not compare" not in alone


def test_predictions_that_ransac_cannot_fit_are_named(data, tmp_path):
    for key, function in zip(data.keys, (np.ones_like, np.negative, np.asarray), strict=True):
        sample = data[data.keys.index(key)]
        np.save(tmp_path / f"{key}.npy", function(np.where(sample.valid, sample.depth, 1)))
    report = stored(data, tmp_path, "depth", protocol="all")
    assert report["protocols"]["ppd"]["images_without_ransac"] == data.keys[:2]
    assert report["protocols"]["marigold"]["images_upside_down"] == data.keys[1:2]
    assert [entry["protocols"]["ppd"]["fit"] for entry in report["per_image"]] == ["mean_ratio", "mean_ratio", "ransac"]
    assert "no positive scale for 2 of 3 predictions, the first is frame0000" in format_protocols(report)


def stored(data, folder: Path, form: str, output: str = "r.json", **settings) -> dict:
    predictions = StoredPredictions(str(folder), form, data.keys)
    return evaluate_predictions(data, predictions, EvaluationSettings(**settings), folder / output, "others")


def test_two_reports_are_compared_protocol_by_protocol(data, tmp_path):
    """Also of stored predictions; one protocol of several is enough, none in common is refused."""
    for factor, name in ((1.0, "good"), (0.3, "bad")):
        (tmp_path / name).mkdir()
        for sample in data:
            noise = np.random.default_rng(0).normal(0, 1 - factor, sample.depth.shape)
            np.save(tmp_path / name / f"{sample.key}.npy", np.log(np.where(sample.valid, sample.depth, 1)) + noise)
        stored(data, tmp_path / name, "log", protocol="all")
    reports = [read_report(tmp_path / name / "r.json") for name in ("bad", "good")]
    comparison = compare_reports(*reports)
    assert comparison["measures"]["ppd/abs_rel"]["verdict"] == "B is better"
    assert comparison["measures"]["marigold/delta1"]["verdict"] == "B is better"
    assert not any("fit" in name or "scale" in name for name in comparison["measures"])
    lines = format_comparison(comparison, ["a", "b"]).splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("ppd/"))
    assert lines[first - 1] == ""
    stored(data, tmp_path / "good", "log", "ppd.json", protocol="ppd")
    stored(data, tmp_path / "good", "log", "plain.json", alignment="depth")
    alone, plain = (read_report(tmp_path / "good" / f"{name}.json") for name in ("ppd", "plain"))
    assert {name.split("/")[0] for name in compare_reports(reports[0], alone)["measures"]} == {"ppd"}
    with pytest.raises(ValueError, match=r"no protocol in common.*--protocol"):
        compare_reports(reports[0], plain)
    assert compare_reports(plain, plain)["measures"]["abs_rel"]["difference"] == 0
    del reports[0]["per_image"][1]["protocols"]["ppd"]
    (tmp_path / "damaged.json").write_text(json.dumps(reports[0]))
    with pytest.raises(ValueError, match="lacks a protocol"):
        read_report(tmp_path / "damaged.json")


def small_diode(tmp_path: Path):
    """DIODE with one image of 64×48: a room of 3 m with a box at 2 m, and pixels that are not known."""
    depth = np.full((48, 64), 3, np.float32) + np.linspace(0, 0.5, 64, dtype=np.float32)
    depth[20:40, 20:40] = 2
    depth[0, 0], depth[5, 5], depth[44, 10] = np.nan, 0, 9
    mask = np.ones((48, 64))
    mask[44, 10] = 0
    config = dataclasses.replace(load_benchmark("diode"), images=1, image_size=(64, 48), intrinsics=None)
    files = diode_files("indoors", 19, 183, "000_000", depth, mask)
    return depth, mask, open_benchmark(config, write_folder(tmp_path / "diode", files))


def test_diode_is_scored_with_and_without_the_mask_of_steep_pixels(tmp_path):
    """The mask is that of the lines of `ppd/data/diode.py`: of depth as stored, before pixels are marked unknown."""
    depth, mask, data = small_diode(tmp_path)
    kept = (mask == 1) & (depth >= 0.6) & (depth <= 350) & ~np.isnan(depth)
    steep = np.abs(ndimage.sobel(depth, 0)) + np.abs(ndimage.sobel(depth, 1)) > 0.3
    sample = data[0]
    assert np.array_equal(data.ppd_pixels(0, sample.depth), kept & ~steep)
    assert np.array_equal(data.ppd_pixels(0, sample.depth, without_steep=False), kept)
    assert steep[43, 9], "beside a pixel that the mask leaves out"
    np.save(tmp_path / f"{data.keys[0]}.npy", np.where(sample.valid, sample.depth, 1))
    report = stored(data, tmp_path, "depth", protocol="all")
    found = {name: entry["valid_pixels"] for name, entry in report["per_image"][0]["protocols"].items()}
    assert found == {"marigold": kept.sum(), "ppd": (kept & ~steep).sum(), "ppd_no_sobel": kept.sum()}
    limits = {name: one.get("max_gradient") for name, one in report["settings"]["protocols"].items()}
    assert limits == {"marigold": None, "ppd": 0.3, "ppd_no_sobel": None}
    assert len(format_protocols(report).splitlines()[0]) <= 119


def test_only_diode_needs_its_stored_depth_and_others_have_ranges_of_their_own(data):
    sample = data[0]
    assert np.array_equal(data.ppd_pixels(0, sample.depth), sample.valid)
    nyuv2 = load_benchmark("nyuv2")
    assert (nyuv2.crop_of_ppd, nyuv2.min_depth_of_ppd) == ("none", 0.1)
    assert "ppd_crop" not in nyuv2.settings()
    gradients = {name: load_benchmark(name).ppd_max_gradient for name in ("diode", "diode-indoor", "kitti", "eth3d")}
    assert gradients == {"diode": 0.3, "diode-indoor": 0.3, "kitti": None, "eth3d": None}


def test_a_protocol_without_an_image_to_score_is_named(tmp_path):
    depth, _, data = small_diode(tmp_path)
    data = open_benchmark(dataclasses.replace(data.config, ppd_min_depth=100.0), tmp_path / "diode")
    np.save(tmp_path / f"{data.keys[0]}.npy", np.nan_to_num(depth))
    with pytest.raises(ValueError, match="Protocol ppd: None of the 1 images has a valid pixel"):
        stored(data, tmp_path, "depth", protocol="ppd")


@pytest.mark.parametrize("fields", [{"protocol": "eigen"}, {"protocol": "ppd", "alignment": "log"}])
def test_bad_settings_are_refused(fields):
    with pytest.raises(ValueError, match="`protocol`"):
        EvaluationSettings(**fields)


def test_the_command_takes_protocol_or_alignment(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--benchmark", "x", "--root", ".", "--output", "r.json", "--protocol", "all", "--alignment", "log"])
    assert "--alignment: not allowed with argument --protocol" in capsys.readouterr().err
