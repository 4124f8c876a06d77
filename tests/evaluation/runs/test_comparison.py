"""`depthfm compare`: two reports of the same images, image by image."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from depthfm_diffusers.cli import main
from depthfm_diffusers.evaluation.runs.comparison import compare_reports, read_report


def report(scores: list[float | None], **settings: object) -> dict:
    entries = [
        {"key": f"frame{n}", "valid_pixels": 900, "scale": 1.0, "abs_rel": score, "delta1": score and 1 - score}
        for n, score in enumerate(scores)
    ]
    described = {
        "benchmark": {"name": "scenes"},
        "data": {"fingerprint": "a"},
        "model": {"name": "tiny"},
        "alignment": "log",
        "alignment_method": "least_squares",
        "max_depth": None,
    }
    return {"format": "depthfm evaluate, 1", "settings": described | settings, "per_image": entries}


NOISE = np.random.default_rng(0).uniform(0.1, 0.5, 40)


def test_a_small_gain_in_every_image_is_clear_where_the_means_intervals_overlap():
    comparison = compare_reports(report(list(NOISE)), report(list(NOISE - 0.01), model={"name": "better"}))
    row = comparison["measures"]["abs_rel"]
    assert row["difference"] == pytest.approx(-0.01)
    assert row["interval"] == pytest.approx([-0.01, -0.01])
    assert (row["better"], row["equal"], row["images"], row["verdict"]) == (40, 0, 40, "B is better")
    assert comparison["measures"]["delta1"]["verdict"] == "B is better"
    assert row["means"] == pytest.approx([NOISE.mean(), NOISE.mean() - 0.01])
    assert comparison["settings"] == {"model": [{"name": "tiny"}, {"name": "better"}]}
    assert compare_reports(report(list(NOISE - 0.01)), report(list(NOISE)))["measures"]["delta1"]["verdict"] == (
        "A is better"
    )


def test_differences_without_a_direction_are_not_clear():
    shuffled = NOISE + np.random.default_rng(1).normal(0, 0.05, 40)
    row = compare_reports(report(list(NOISE)), report(list(shuffled)))["measures"]["abs_rel"]
    assert row["interval"][0] < 0 < row["interval"][1]
    assert row["verdict"] == "no clear difference"


def test_only_images_with_both_scores_count():
    row = compare_reports(report([0.1, None, 0.3]), report([0.2, 0.2, None]))["measures"]["abs_rel"]
    assert row["images"] == 1
    assert row["difference"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="share no measure"):
        compare_reports(report([0.1, None]), report([None, 0.1]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (report([0.1, 0.2], data={"fingerprint": "b"}), "different data"),
        (report([0.1, 0.2], alignment="depth"), r'different protocols.*alignment: "log" and "depth"'),
        (report([0.1, 0.2], benchmark={"name": "kitti"}), r'benchmark: "scenes" and "kitti"'),
        (report([0.1, 0.2, 0.3]), "1 are in one only, first 'frame2'"),
    ],
)
def test_what_does_not_compare_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        compare_reports(report([0.1, 0.2]), other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is not JSON"),
        ("{}", "is not a report of `depthfm evaluate`"),
        (json.dumps({"format": "depthfm evaluate, 1"}), "no `settings` or no `per_image`"),
        (json.dumps(report([0.1]) | {"per_image": [{}]}), "has no key"),
        (json.dumps(report([0.1], model=None)), "which benchmark, data and model"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path / "a.json")


def test_command_prints_and_writes(tmp_path: Path, capsys):
    stored = Path(__file__).parents[2] / "data" / "reports" / "evaluate.json"  # of 0.4.0
    other = copy.deepcopy(json.loads(stored.read_text()))
    for entry in other["per_image"]:
        if entry["valid_pixels"]:
            entry["abs_rel"] /= 2
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert main(["compare", str(stored), str(tmp_path / "b.json"), "--output", str(tmp_path / "c" / "c.json")]) == 0
    said = capsys.readouterr().out
    assert "B is better" in said
    assert "no clear difference" in said
    written = json.loads((tmp_path / "c" / "c.json").read_text())
    assert written["measures"]["abs_rel"]["verdict"] == "B is better"
    assert main(["compare", str(stored), str(tmp_path / "missing.json")]) == 1
    assert "missing.json" in capsys.readouterr().err
