"""`depthfm evaluate` on a tiny model and tiny folders: the report, stopping and going on, several processes."""

from __future__ import annotations

from helpers.repository import ROOT

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import forked_python
from helpers.components import build_components
from PIL import Image
from helpers.shards import png, sloping_frame, write_pairs, write_shard

from depthfm_diffusers import DepthFMPipeline, cli
from depthfm_diffusers.commands import terminal
from depthfm_diffusers.evaluation.metrics.alignment import prediction_in_space
from depthfm_diffusers.evaluation.runs import benchmark, scoring
from depthfm_diffusers.evaluation.runs.report import format_report
from depthfm_diffusers.inference.prediction import Prediction
from depthfm_diffusers.evaluation.metrics.alignment import align
from depthfm_diffusers.evaluation.data.configs import benchmark_names, load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.evaluation.metrics.metrics import all_metrics
from depthfm_diffusers.evaluation.runs.resumable_run import partial_folder
from depthfm_diffusers.evaluation.runs.scoring import EvaluationSettings
from depthfm_diffusers.inference.prediction import PredictionSettings

IMAGES = 5
NAMES = {"abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "i_rmse", "delta1", "delta2", "delta3"}
EDGES = {"boundary_f1", "see3", "see5", "see7", "abs_rel_edges", "abs_rel_away"}
NORMALS = {"normals_mean_deg", "normals_median_deg"}


@pytest.fixture(autouse=True)
def _own_accelerate_state(fresh_accelerate_state):
    """Commands make the state of the processes."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    DepthFMPipeline(**build_components(), default_processing_resolution=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    return write_pairs(folder, [sloping_frame(number) for number in range(IMAGES)], metadata=True)


@pytest.fixture
def evaluate(model, pairs, tmp_path, monkeypatch):
    """Runs `depthfm evaluate` on the pairs with the tiny model, in the temporary folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, root: Path = pairs, name: str = "pairs", output: str = "report.json") -> int:
        given = ["--benchmark", name, "--root", root, "--model", model, "--device", "cpu", "--output", output]
        return cli.main(["evaluate", *map(str, given), *map(str, arguments)])

    return run


@pytest.fixture
def call(model, pairs, tmp_path):
    """Calls `run_evaluation` as the command does."""
    pipe = DepthFMPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)

    def run(output: Path, on_progress=None, seed: int = 0, **settings):
        data = open_benchmark(load_benchmark("pairs"), pairs)
        settings = EvaluationSettings(PredictionSettings(seed=seed), **settings)
        return benchmark.run_evaluation(
            pipe, data, settings, output, {"name": "m", "sha256": "0"}, on_progress=on_progress
        )

    return run


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def without_time(path: Path) -> dict:
    report = read(path)
    del report["time"]
    return report


class Stopped(Exception):
    """Stands for a kill: nothing in the library catches it."""


def stop_after(number: int):
    """Stops an evaluation after this many images."""

    def on_progress(done: int, total: int) -> None:
        if done == number:
            raise Stopped

    return on_progress


# The report


def test_report_has_what_the_parts_give(evaluate, model, pairs, tmp_path, capsys):
    assert evaluate("--steps", 3, "--seed", 7) == 0
    report = read(tmp_path / "report.json")
    data = open_benchmark(load_benchmark("pairs"), pairs)
    pipe = DepthFMPipeline.from_pretrained(model)
    assert report["images"] == IMAGES
    assert [entry["key"] for entry in report["per_image"]] == data.keys
    for sample, entry in zip(data, report["per_image"], strict=True):
        output = pipe(sample.image, num_inference_steps=3, generator=torch.Generator().manual_seed(7))
        aligned = align(output.log_depth[0, ..., 0], sample.depth, sample.valid, "log")
        assert entry["valid_pixels"] == sample.valid.sum()
        assert entry["scale"] == pytest.approx(float(aligned.scale), rel=1e-3)
        expected = all_metrics(aligned.depth, sample.depth, sample.valid, sample.intrinsics)
        assert set(expected) == NAMES | NORMALS | EDGES
        for name in expected:
            # Threads may differ from those of the command, and so may rounding.
            assert entry[name] == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-4), name
    values = [entry["abs_rel"] for entry in report["per_image"]]
    assert report["mean"]["abs_rel"] == pytest.approx(np.mean(values))
    low, high = report["interval"]["abs_rel"]
    assert min(values) <= low < report["mean"]["abs_rel"] < high <= max(values)
    settings = report["settings"]
    assert (settings["num_inference_steps"], settings["seed"], settings["alignment"]) == (3, 7, "log")
    assert (settings["processing_resolution"], settings["device"], settings["dtype"]) == (64, "cpu", "float32")
    assert settings["benchmark"]["name"] == "pairs"
    assert settings["data"] == {"images": IMAGES, "fingerprint": data.fingerprint()}
    assert report["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert f"{report['mean']['abs_rel']:.3f}" in printed
    assert f"{report['ceilings']['autoencoded']['mean']['abs_rel']:.3f}" in printed
    assert not partial_folder(tmp_path / "report.json").exists()
    with Image.open(tmp_path / "report.png") as sheet:
        assert sheet.mode == "RGB"


def test_twice_the_same(evaluate, tmp_path):
    assert evaluate(output="one.json") == 0
    assert evaluate(output="two.json") == 0
    assert without_time(tmp_path / "one.json") == without_time(tmp_path / "two.json")
    assert set(read(tmp_path / "one.json")["time"]) == {"started", "finished", "seconds"}
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_another_seed_gives_another_report(evaluate, tmp_path):
    assert evaluate("--limit", 1, output="one.json") == 0
    assert evaluate("--limit", 1, "--seed", 1, output="two.json") == 0
    assert read(tmp_path / "one.json")["mean"] != read(tmp_path / "two.json")["mean"]


def test_an_image_does_not_depend_on_the_others(evaluate, tmp_path):
    assert evaluate(output="all.json") == 0
    assert evaluate("--limit", 2, "--contact-sheet", "sheets.png", output="two.json") == 0
    assert read(tmp_path / "two.json")["per_image"] == read(tmp_path / "all.json")["per_image"][:2]
    assert read(tmp_path / "two.json")["settings"]["limit"] == 2
    assert (tmp_path / "sheets.png").is_file()
    assert not (tmp_path / "two.png").exists()


@pytest.mark.parametrize("space", ["none", "depth", "disparity"])
def test_alignments(evaluate, tmp_path, space):
    assert evaluate("--limit", 2, "--alignment", space) == 0
    report = read(tmp_path / "report.json")
    assert (report["settings"]["alignment"], report["settings"]["alignment_method"]) == (space, "least_squares")
    spaces = {name: ceiling["space"] for name, ceiling in report["ceilings"].items()}
    assert spaces == {"normalized": "log", "autoencoded": "log", "output": "depth" if space == "none" else space}
    if space == "none":
        assert {(entry["scale"], entry["shift"]) for entry in report["per_image"]} == {(1.0, 0.0)}


def test_ensemble_has_the_quality_of_its_uncertainty(evaluate, tmp_path):
    assert evaluate("--limit", 2, "--ensemble", 3, "--batch-size", 3) == 0
    report = read(tmp_path / "report.json")
    assert report["mean"].keys() == NAMES | NORMALS | EDGES | {"ause", "uncertainty_rank_correlation"}
    assert report["mean"]["ause"] > 0
    assert -1 <= report["mean"]["uncertainty_rank_correlation"] <= 1


def test_images_without_depth_are_named_and_not_scored(evaluate, tmp_path, capsys):
    frames = [sloping_frame(number) for number in range(3)]
    frames[1]["depth.png"] = png(np.zeros((48, 64), np.uint16))
    root = write_pairs(tmp_path / "holes", frames)
    assert evaluate(root=root) == 0
    report = read(tmp_path / "report.json")
    assert (report["images"], report["images_without_depth"]) == (2, ["frame0001"])
    assert report["per_image"][1] == {"key": "frame0001", "valid_pixels": 0}
    assert "1 more without a valid pixel are not scored, the first is frame0001" in capsys.readouterr().out


def frame_with_valid_pixels(number: int) -> dict[str, bytes]:
    """A frame of which only a few pixels, of different depths, are known."""
    depth = np.zeros((48, 64), np.uint16)
    depth[20, :number] = np.linspace(1000, 5000, number)
    return {**sloping_frame(1), "depth.png": png(depth)}


def test_images_with_few_valid_pixels_are_named_and_not_scored(evaluate, tmp_path, capsys):
    """Two pixels are fitted exactly by any prediction."""
    frames = [sloping_frame(0), *(frame_with_valid_pixels(number) for number in (2, 19, 20))]
    assert evaluate(root=write_pairs(tmp_path / "few", frames)) == 0
    report = read(tmp_path / "report.json")
    assert (report["images"], report["images_without_depth"]) == (2, [])
    assert report["images_with_few_pixels"] == ["frame0001", "frame0002"]
    assert report["per_image"][1:3] == [
        {"key": "frame0001", "valid_pixels": 2},
        {"key": "frame0002", "valid_pixels": 19},
    ]
    assert report["counts"]["abs_rel"] == 2
    printed = capsys.readouterr().out
    assert "2 more with fewer than 20 valid pixels are not scored, the first is frame0001" in printed


def test_only_images_with_few_valid_pixels_are_an_error(evaluate, tmp_path, capsys):
    assert evaluate(root=write_pairs(tmp_path / "few", [frame_with_valid_pixels(2)])) == 1
    assert "None of the 1 images has 20 valid pixels" in capsys.readouterr().err


@pytest.mark.parametrize("space", ["none", "depth", "log", "disparity"])
def test_predictions_that_are_upside_down_are_named(pipe, tmp_path, space, monkeypatch):
    """Near and far swapped, they are perfect in log after a negative scale: the scores stay, and the report says it."""
    root = write_pairs(tmp_path / "pairs", [sloping_frame(number) for number in range(3)])
    data = open_benchmark(load_benchmark("pairs"), root)
    swapped = data.keys[1]

    def predict(pipe, image, settings, output_uncertainty):
        (sample,) = (one for one in data if np.array_equal(one.image, image))
        log_depth = np.log(np.where(sample.valid, sample.depth, 1)) * (-1 if sample.key == swapped else 1)
        return Prediction(prediction_in_space(log_depth, "depth"), log_depth)

    monkeypatch.setattr(scoring, "predict_image", predict)
    settings = EvaluationSettings(alignment=space)
    report = benchmark.run_evaluation(pipe, data, settings, tmp_path / "r.json", {"name": "m", "sha256": "0"})
    assert report["images"] == 3
    assert report["images_upside_down"] == ([] if space == "none" else [swapped])
    assert ("Upside down: 1 of 3 predictions, the first is frame0001" in format_report(report)) == (space != "none")
    if space == "log":
        assert report["per_image"][1]["scale"] == pytest.approx(-1, abs=1e-5)
        assert report["per_image"][1]["abs_rel"] == pytest.approx(0, abs=1e-5)


def test_no_image_with_depth_is_an_error(evaluate, tmp_path, capsys):
    frame = {**sloping_frame(0), "depth.png": png(np.zeros((48, 64), np.uint16))}
    assert evaluate(root=write_pairs(tmp_path / "holes", [frame])) == 1
    assert "None of the 1 images has a valid pixel" in capsys.readouterr().err


def test_shards_and_a_benchmark_file_of_ones_own(evaluate, tmp_path):
    shard = write_shard(tmp_path / "train-000.tar", [sloping_frame(number) for number in range(2)])
    text = 'name = "mine"\ntitle = "Mine"\nsource = "me"\nlicense = "mine"\nreader = "shards"\nalignment = "depth"\n'
    (tmp_path / "mine.toml").write_text(text + "max_depth = 5.0\nprocessing_resolution = 32\n")
    assert evaluate(root=shard, name="mine.toml") == 0
    settings = read(tmp_path / "report.json")["settings"]
    assert settings["benchmark"]["name"] == "mine"
    assert (settings["alignment"], settings["max_depth"], settings["processing_resolution"]) == ("depth", 5.0, 32)


# Stopping and going on


def test_stopped_and_gone_on_it_is_the_same(call, tmp_path):
    call(tmp_path / "whole.json")
    output = tmp_path / "report.json"
    for number in (2, 4):
        with pytest.raises(Stopped):
            call(output, stop_after(number))
        lines = (partial_folder(output) / "images-0.jsonl").read_bytes()
        assert lines.count(b"\n") == number
        # A kill in the middle of a line.
        (partial_folder(output) / "images-0.jsonl").write_bytes(lines + b'{"key": "frame0004", "abs_r')
    assert not output.exists()
    progress = []
    call(output, lambda done, total: progress.append((done, total)))
    assert progress == [(4, 5), (5, 5)]
    assert without_time(output) == without_time(tmp_path / "whole.json")


def test_results_of_another_evaluation_are_refused(evaluate, call, model, tmp_path, capsys, monkeypatch):
    output = tmp_path / "report.json"
    with pytest.raises(Stopped):
        call(output, stop_after(1), seed=3)
    kept = (partial_folder(output) / "images-0.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"settings\.seed \(3 then, 0 now\)"):
        call(output)
    assert evaluate("--seed", 3) == 1
    message = capsys.readouterr().err
    assert "settings.model.sha256 ('0' then, " in message
    assert "delete that folder to start anew" in message
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(ValueError, match=r"versions\.torch"):
        call(output, seed=3)
    assert (partial_folder(output) / "images-0.jsonl").read_bytes() == kept


def test_other_data_are_refused(evaluate, tmp_path, monkeypatch, capsys):
    root = write_pairs(tmp_path / "own", [sloping_frame(number) for number in range(2)])
    monkeypatch.setattr(terminal.Progress, "show", lambda self, done, total: stop_after(1)(done, total))
    with pytest.raises(Stopped):
        evaluate(root=root)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(root / "images" / "frame0001.png")
    assert evaluate(root=root) == 1
    assert "settings.data.fingerprint" in capsys.readouterr().err


def test_progress_begins_where_the_run_goes_on(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with contextlib.closing(terminal.Progress(shown=True)) as progress:
        for done in (3, 4, 5):
            progress.show(done, 5)
    shown = capsys.readouterr().err
    assert "3/5 [" in shown.split("\r")[1]
    assert "5/5 [" in shown
    terminal.Progress(shown=False).show(1, 2)
    assert capsys.readouterr().err == ""


def test_another_name_of_the_same_model_is_no_other_model(pipe, pairs, tmp_path):
    data = open_benchmark(load_benchmark("pairs"), pairs)
    arguments = pipe, data, EvaluationSettings(limit=2), tmp_path / "report.json"
    with pytest.raises(Stopped):
        benchmark.run_evaluation(*arguments, {"name": "here", "sha256": "0"}, on_progress=stop_after(1))
    report = benchmark.run_evaluation(*arguments, {"name": "there", "sha256": "0"})
    assert report["settings"]["model"]["name"] == "there"


def test_number_of_threads_of_the_process_is_left_alone(call, tmp_path):
    before = torch.get_num_threads()
    seen = []
    call(tmp_path / "report.json", lambda done, total: seen.append(torch.get_num_threads()), threads=3, limit=1)
    assert seen == [before, 3]
    assert torch.get_num_threads() == before


# Other threads than in this process, for NumPy and torch.
MORE_THREADS = """
import sys
import threadpoolctl
import torch
from depthfm_diffusers import cli
torch.set_num_threads(2)
threadpoolctl.threadpool_limits(2)
assert {library["num_threads"] for library in threadpoolctl.threadpool_info()} == {2}
sys.exit(cli.main(sys.argv[1:]))
"""


def test_two_processes_go_on_where_one_was_stopped(evaluate, model, pairs, tmp_path, monkeypatch):
    assert evaluate("--steps", 1, output="whole.json") == 0
    with monkeypatch.context() as patch:
        patch.setattr(terminal.Progress, "show", lambda self, done, total: stop_after(1)(done, total))
        with pytest.raises(Stopped):
            evaluate("--steps", 1)
    given = ["--benchmark", "pairs", "--root", pairs, "--model", model, "--device", "cpu", "--steps", 1]
    command = ["-c", MORE_THREADS, "evaluate", *map(str, given), "--output", "report.json"]
    status, said = forked_python.run(command, tmp_path / "log", processes=2)
    assert status == 0, said
    assert said.count("written to report.json") == 1
    assert without_time(tmp_path / "report.json") == without_time(tmp_path / "whole.json")
    assert not partial_folder(tmp_path / "report.json").exists()


def test_processes_share_the_images(pipe, pairs, tmp_path):
    """Three processes, each with a folder of its own, up to where they would meet again."""

    class Process:
        def __init__(self, index: int, meets: int) -> None:
            self.process_index, self.num_processes, self.meets = index, 3, meets

        def wait_for_everyone(self) -> None:
            self.meets -= 1
            if self.meets == 0:
                raise Stopped

    data = open_benchmark(load_benchmark("pairs"), pairs)
    written = []
    for rank in range(3):
        output = tmp_path / f"{rank}.json"
        for process in (Process(0, 1), Process(rank, 3)):  # the first only makes the folder
            with pytest.raises(Stopped):
                benchmark.run_evaluation(
                    pipe, data, EvaluationSettings(), output, {"name": "m", "sha256": "0"}, processes=process
                )
        lines = (partial_folder(output) / f"images-{rank}.jsonl").read_text().splitlines()
        written.append([json.loads(line)["key"] for line in lines])
    assert written == [["frame0000", "frame0003"], ["frame0001", "frame0004"], ["frame0002"]]


# The command


def test_list_names_the_benchmarks(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", "--list"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(benchmark_names())
    assert "KITTI, Eigen split" in lines[benchmark_names().index("kitti")]


@pytest.mark.parametrize("missing", ["--benchmark", "--root", "--output"])
def test_what_must_be_given(missing, capsys):
    given = {"--benchmark": "pairs", "--root": "x", "--output": "y.json"}
    with pytest.raises(SystemExit) as error:
        cli.main(["evaluate", *(part for name in given if name != missing for part in (name, given[name]))])
    assert error.value.code == 2
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "nyu"}, "There is no benchmark 'nyu'; there are diode"),
        ({"root": Path("nowhere")}, "there is no file or folder nowhere"),
        ({"output": "report.png"}, "--output report.png: the report is a JSON file, its name must end in .json"),
        ({"output": "."}, "a folder, not a file to write"),
    ],
)
def test_errors_name_what_is_wrong_before_a_model_is_loaded(evaluate, capsys, monkeypatch, tmp_path, changes, message):
    monkeypatch.setattr("depthfm_diffusers.checkpoints.model_folder.load_pipeline", None)
    assert evaluate(**changes) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made(evaluate, tmp_path):
    assert evaluate("--limit", 1, "--contact-sheet", "b/c/sheet.png", output="a/report.json") == 0
    assert (tmp_path / "a" / "report.json").is_file()
    assert (tmp_path / "b" / "c" / "sheet.png").is_file()


def test_a_damaged_image_is_named_and_the_rest_is_kept(evaluate, tmp_path, capsys):
    root = write_pairs(tmp_path / "own", [sloping_frame(number) for number in range(3)])
    broken = root / "depth" / "frame0002.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    assert evaluate(root=root) == 1
    assert "frame0002" in capsys.readouterr().err
    assert (tmp_path / "report.partial" / "images-0.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize(
    "fields",
    [{"threads": 0}, {"limit": 0}, {"alignment": "metric"}],
)
def test_bad_settings_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        EvaluationSettings(**fields)


def test_flags_and_benchmarks_named_on_the_page_exist():
    page = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.main(["evaluate", "--help"])
    known = set(re.findall(r"--[a-z-]+", printed.getvalue()))
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", page))
    assert len(flags) > 10
    # Of other programs, and of the trainer.
    assert flags - known == {"--multi_gpu", "--num_processes", "--nproc-per-node", "--depth_normalization"}
    rows = re.findall(r"^\| (`[a-z0-9-]+`(?:, `[a-z0-9-]+`)*) \|.*\| depth \|$", page, re.MULTILINE)
    named = set(re.findall(r"[a-z0-9-]+", " ".join(rows)))
    assert named | {"pairs", "scenes", "scenes-all"} == set(benchmark_names())
