"""From the results of single images to the report of an evaluation, and to the table that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .upper_bounds import (CEILINGS, ceiling_spaces,)

REPORT_FORMAT = "depthfm evaluate, 1"
NOT_MEASURES = ("key", "valid_pixels", "scale", "shift", "ceilings")
RESAMPLES = 2000
CONFIDENCE = 0.95
# Of the measures, those that have room in the table, and what papers call them.
TABLE = {
    "abs_rel": "AbsRel",
    "delta1": "δ1",
    "delta2": "δ2",
    "rmse": "RMSE",
    "log10": "log10",
    "boundary_f1": "edge F1",
}
UNITS = {
    "rmse": "m",
    "sq_rel": "m",
    "i_rmse": "1/m",
    "silog": "x100",
    "normals_mean_deg": "degrees",
    "normals_median_deg": "degrees",
}


def build_report(
    described: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], times: Mapping[str, Any]
) -> dict[str, Any]:
    """Puts a report together.

    Args:
        described: `settings` and `versions`, from `benchmark.describe_evaluation`.
        entries: What `scoring.score_sample` returned for each image, with its `seconds`, in the order of the data.
        times: When the run began and ended.

    Returns:
        What JSON can hold:
        `images`, how many are scored, and `images_without_depth`, the keys of those that have no valid pixel;
        `mean` of each measure over the images, and `counts` of the images where it is defined;
        `interval`, the two ends of each mean's 95 % interval: percentiles of the means of 2,000 samples of the images
        drawn with replacement (bootstrap, see `bootstrap`);
        `ceilings`, for each its `space` and its `mean`;
        `per_image`, the entries; `settings`, `versions`; `bootstrap`; `time`, all that differs between two runs.

    Raises:
        ValueError: If no image has a valid pixel.
    """
    scored = [entry for entry in entries if entry["valid_pixels"]]
    if not scored:
        raise ValueError(f"None of the {len(entries)} images has a valid pixel: there is nothing to score.")
    values = _columns(scored)
    ceilings = {}
    for name, space in ceiling_spaces(described["settings"]["alignment"]).items():
        columns = _columns([entry["ceilings"][name] for entry in scored])
        ceilings[name] = {"space": space, "mean": {measure: _mean(column) for measure, column in columns.items()}}
    return {
        "format": REPORT_FORMAT,
        "images": len(scored),
        "images_without_depth": [entry["key"] for entry in entries if not entry["valid_pixels"]],
        "mean": {measure: _mean(column) for measure, column in values.items()},
        "interval": {measure: bootstrap_interval(column) for measure, column in values.items()},
        "counts": {measure: len(column) for measure, column in values.items()},
        "ceilings": ceilings,
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": 0},
        **described,
        "per_image": [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries],
        "time": {**times, "seconds": round(sum(entry["seconds"] for entry in entries), 3)},
    }


def bootstrap_interval(values: Sequence[float]) -> list[float] | None:
    """Interval of a mean, by resampling with replacement: the percentile bootstrap, 2,000 samples, fixed seed.

    Args:
        values: One per image.

    Returns:
        The 2.5 % and the 97.5 % percentile of the samples' means; `None` without values. Of one value it is that
        value twice: it says nothing of other images.
    """
    if not values:
        return None
    array = np.array(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)]
    tail = 100 * (1 - CONFIDENCE) / 2
    return [float(end) for end in np.percentile(means, [tail, 100 - tail])]


def format_report(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal.

    Args:
        report: From `build_report`.

    Returns:
        Lines of text without a final newline: the model's row with the ceilings below it, then every measure with its
        interval.
    """
    settings = report["settings"]
    rows = [(_model_row(settings), report["mean"])]
    rows += [
        (_ceiling_row(name, report["ceilings"][name]["space"]), report["ceilings"][name]["mean"]) for name in CEILINGS
    ]
    width = max(len(label) for label, _ in rows)
    header = " " * width + "".join(title.rjust(9) for title in TABLE.values())
    lines = [
        f"{settings['benchmark']['title']}: {report['images']} images, each aligned in {settings['alignment']} by "
        f"{settings['alignment_method'].replace('_', ' ')}",
    ]
    without = report["images_without_depth"]
    if without:
        lines.append(f"{len(without)} more without a valid pixel are not scored, the first is {without[0]}")
    lines += ["", header]
    for label, mean in rows:
        lines.append(label.ljust(width) + "".join(_cell(mean.get(measure)).rjust(9) for measure in TABLE))
    lines += ["", *_reading(settings["alignment"]), "", "mean over the images and its 95 % interval (bootstrap):"]
    name_width = max(len(measure) for measure in report["mean"])
    for measure, mean in report["mean"].items():
        interval, count = report["interval"][measure], report["counts"][measure]
        ends = "" if interval is None else f"  [{_cell(interval[0])}, {_cell(interval[1])}]"
        unit = f" {UNITS[measure]}" if measure in UNITS else ""
        partly = "" if count == report["images"] else f"  (defined for {count} images)"
        lines.append(f"  {measure.ljust(name_width)}  {_cell(mean).rjust(7)}{ends}{unit}{partly}")
    return "\n".join(lines)


def _model_row(settings: Mapping[str, Any]) -> str:
    steps, members = settings["num_inference_steps"], settings["ensemble_size"]
    label = f"{settings['model']['name']}, {steps} step{'s' * (steps > 1)}"
    return label + (f", ensemble of {members}" if members > 1 else "")


def _ceiling_row(name: str, space: str) -> str:
    label = {
        "normalized": "  truth, normalised",
        "autoencoded": "  ... + autoencoder",
        "output": "  ... + exp, min-max" if space != "disparity" else "  ... + disparity",
    }
    return f"{label[name]} (in {space})"


def _reading(space: str) -> list[str]:
    """How to read the ceilings."""
    lines = ["Below the model are the ceilings: the true depth itself, after each part of its way through the model."]
    if space in ("depth", "disparity"):
        return [
            *lines,
            "Compare the model with the last one: what is between the two is the network's error. What is between the",
            f"last and the one before is the price of aligning in {space}, whatever the network.",
        ]
    if space == "log":
        return [
            *lines,
            "Compare the model with the autoencoder's row: what is between the two is the network's error. The last",
            "row is what `prediction`, exp and min-max, costs whoever uses it in place of the log depth.",
        ]
    return [
        *lines,
        "They are aligned and the model is not: the scale and shift of each image are between them, too.",
    ]


def _columns(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Per measure, its values where it is defined."""
    names = dict.fromkeys(
        name for entry in entries for name in entry if name not in NOT_MEASURES and name != "seconds"
    )
    return {name: [entry[name] for entry in entries if entry.get(name) is not None] for name in names}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(np.array(values, dtype=np.float64))) if values else None


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"
