"""The report of an evaluation, its table, and the choice of images to show."""

from __future__ import annotations

import numpy as np
import pytest

from depthfm_diffusers.evaluation.runs.contact_sheet import contact_sheet, pick_images
from depthfm_diffusers.evaluation.runs.means import bootstrap_interval
from depthfm_diffusers.evaluation.runs.report import build_report, format_report
from depthfm_diffusers.evaluation.runs.scoring import EvaluationSettings, Protocol, predict_sample

DESCRIBED = {
    "settings": {
        "benchmark": {"title": "Toys"},
        "model": {"name": "tiny"},
        "num_inference_steps": 1,
        "ensemble_size": 4,
        "alignment": "depth",
        "alignment_method": "least_squares",
    },
    "versions": {"torch": "1"},
}


def entry(key: str, abs_rel: float, boundary_f1: float | None = 0.5) -> dict:
    measures = {"abs_rel": abs_rel, "delta1": 1 - abs_rel, "boundary_f1": boundary_f1}
    ceilings = {name: {"abs_rel": factor * abs_rel} for name, factor in CEILINGS.items()}
    return {
        "key": key,
        "valid_pixels": 900,
        "scale": 1.0,
        "shift": 0.0,
        **measures,
        "ceilings": ceilings,
    }


CEILINGS = {"normalized": 0.1, "autoencoded": 0.2, "output": 0.4}
EMPTY = {"key": "empty", "valid_pixels": 0}


def test_means_are_over_the_images_where_a_measure_is_defined():
    report = build_report(DESCRIBED, [entry("a", 0.1, 0.3), EMPTY, entry("b", 0.2, None), entry("c", 0.6, 0.5)])
    assert (report["images"], report["images_without_depth"]) == (3, ["empty"])
    assert report["mean"] == pytest.approx({"abs_rel": 0.3, "delta1": 0.7, "boundary_f1": 0.4})
    assert report["counts"] == {"abs_rel": 3, "delta1": 3, "boundary_f1": 2}
    means = {name: ceiling["mean"]["abs_rel"] for name, ceiling in report["ceilings"].items()}
    assert means == pytest.approx({"normalized": 0.03, "autoencoded": 0.06, "output": 0.12})
    assert {name: ceiling["space"] for name, ceiling in report["ceilings"].items()} == {
        "normalized": "log",
        "autoencoded": "log",
        "output": "depth",
    }


def test_a_measure_that_is_defined_nowhere_is_null():
    report = build_report(DESCRIBED, [entry("a", 0.1, None)])
    assert (report["mean"]["boundary_f1"], report["interval"]["boundary_f1"]) == (None, None)
    assert "(defined for 0 images)" in format_report(report)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="None of the 1 images has a valid pixel"):
        build_report(DESCRIBED, [EMPTY])


def test_interval_is_that_of_the_normal_distribution_for_many_images():
    values = np.random.default_rng(1).normal(10, 2, 400)
    low, high = bootstrap_interval(list(values))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_interval_of_few_values():
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([0.25]) == [0.25, 0.25]
    low, high = bootstrap_interval([0.0, 1.0])
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([3.0, 1.0, 2.0]) == bootstrap_interval([3.0, 1.0, 2.0])


def test_table():
    report = build_report(DESCRIBED, [entry("a", 0.1), entry("b", 0.5), EMPTY])
    lines = format_report(report).splitlines()
    assert lines[0] == "Toys: 2 images, each aligned in depth by least squares"
    assert lines[1] == "1 more without a valid pixel are not scored, the first is empty"
    rows = [line.rsplit("  ", 6)[0].strip() for line in lines[4:8]]
    assert [row.split("   ")[0] for row in rows] == [
        "tiny, 1 step, ensemble of 4",
        "truth, normalised (in log)",
        "... + autoencoder (in log)",
        "... + exp, min-max (in depth)",
    ]
    assert [line.split()[-6] for line in lines[4:8]] == ["0.300", "0.030", "0.060", "0.120"]
    assert any(line.split()[:2] == ["abs_rel", "0.300"] for line in lines)
    assert max(map(len, lines)) <= 119


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["best"]),
        (3, ["best"] * 3),
        (4, ["best"] * 3 + ["worst"]),
        (7, ["best"] * 3 + ["median"] + ["worst"] * 3),
        (9, ["best"] * 3 + ["median"] * 3 + ["worst"] * 3),
        (101, ["best"] * 3 + ["median"] * 3 + ["worst"] * 3),
    ],
)
def test_images_to_show(count, expected):
    errors = np.random.default_rng(0).permutation(count) / count
    picked = pick_images([EMPTY, *(entry(str(n), float(error)) for n, error in enumerate(errors))])
    assert [rank for rank, _ in picked] == expected
    shown = [one["abs_rel"] for _, one in picked]
    assert shown == sorted(shown)
    assert shown[0] == errors.min()
    assert shown[-1] == errors.max()
    if count == 101:
        assert shown[4] == np.median(errors)


def test_contact_sheet_shows_the_error_where_it_is(pipe, tmp_path):
    """The tile of a wall at 2 m with a post at 4 m: unknown pixels are grey, those of the image are the image's."""
    from helpers.shards import (png, write_pairs,)

    from depthfm_diffusers.evaluation.data.configs import load_benchmark
    from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark

    depth = np.full((64, 64), 2000, np.uint16)
    depth[:, 40:] = 4000
    depth[:16] = 0
    image = np.full((64, 64, 3), (10, 200, 30), np.uint8)
    root = write_pairs(tmp_path / "pairs", [{"png": png(image), "depth.png": png(depth), "json": b"{}"}])
    config = load_benchmark("pairs")
    data = open_benchmark(config, root)
    protocol = Protocol.resolve(EvaluationSettings(), config, pipe)
    picked = [("best", entry("frame0000", 0.5))]
    sheet = contact_sheet(data, picked, lambda sample: predict_sample(pipe, sample, protocol)[0].depth)
    assert sheet.dtype == np.uint8
    tiles = [sheet[-328:-8, 8 + 328 * column :][:, :320] for column in range(4)]
    np.testing.assert_array_equal(tiles[0], np.broadcast_to([10, 200, 30], (320, 320, 3)))
    for tile in (tiles[1], tiles[3]):
        assert (tile[:75] == 200).all()
        assert not (tile[90:] == 200).all(-1).any()
    near, far = tiles[1][200, 100].astype(int), tiles[1][200, 300].astype(int)
    assert near[0] > near[2]  # red
    assert far[2] > far[0]  # blue
