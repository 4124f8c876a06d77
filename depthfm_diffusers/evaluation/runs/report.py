"""From the results of single images to the report of an evaluation, and to the table that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..choices import EVALUATION_FORMAT
from ..metrics.alignment import MIN_VALID_PIXELS
from .means import (
    BOOTSTRAP,
    bootstrap_interval,
    defined_values,
    format_value,
    mean_of,
)
from .upper_bounds import UPPER_BOUNDS, upper_bound_spaces

NOT_MEASURES = ("key", "valid_pixels", "scale", "shift", "fit", "ceilings")
# The measures that the table has room for, and what papers call them.
TABLE = {
    "abs_rel": "AbsRel",
    "delta1": "δ1",
    "delta2": "δ2",
    "rmse": "RMSE",
    "log10": "log10",
    "boundary_f1": "edge F1",
}
UPPER_BOUND_LABELS = {
    "normalized": "  truth, normalised",
    "autoencoded": "  ... + autoencoder",
    "output": "  ... + exp, min-max",
}
UNITS = {
    "rmse": "m",
    "sq_rel": "m",
    "i_rmse": "1/m",
    "silog": "x100",
    "normals_mean_deg": "degrees",
    "normals_median_deg": "degrees",
}


def build_report(described: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts a report together, without its `per_image` and `time`.

    Args:
        described: `settings` and `versions`, from `benchmark.describe_evaluation`.
        entries: What `scoring.score_sample` returned for each image, in the order of the data.

    Returns:
        What JSON can hold: what `summarize` returns; `settings`, `versions`; `bootstrap`, how intervals are made.

    Raises:
        ValueError: If no image can be scored.
    """
    return {
        "format": EVALUATION_FORMAT,
        **summarize(entries, described["settings"]["alignment"]),
        "bootstrap": BOOTSTRAP,
        **described,
    }


def summarize(entries: Sequence[Mapping[str, Any]], alignment: str) -> dict[str, Any]:
    """Summarizes the scores of single images.

    Args:
        entries: What `scoring.score_sample` returned for each image, in the order of the data.
        alignment: The space in which predictions are aligned.

    Returns:
        `images`, how many are scored; `images_without_depth`, the keys of those that have no valid pixel, and
        `images_with_few_pixels`, of those that have too few to be scored;
        `images_upside_down`, the keys of the scored images whose alignment has a negative scale;
        `mean` of each measure over the images, and `counts` of the images where it is defined;
        `interval`, the two ends of each mean's 95 % interval: percentiles of the means of 2,000 samples of the images
        drawn with replacement (bootstrap, see `bootstrap`);
        `ceilings`, for each upper bound its `space` and its `mean`; empty where there are none.

    Raises:
        ValueError: If no image can be scored.
    """
    scored = [entry for entry in entries if is_scored(entry)]
    without = [entry["key"] for entry in entries if not entry["valid_pixels"]]
    if not scored:
        number = "a valid pixel" if len(without) == len(entries) else f"{MIN_VALID_PIXELS} valid pixels"
        raise ValueError(f"None of the {len(entries)} images has {number}: there is nothing to score.")
    values = defined_values(scored, _measures(scored))
    bounds = {}
    spaces = upper_bound_spaces(alignment) if "ceilings" in scored[0] else {}
    for name, space in spaces.items():
        rows = [entry["ceilings"][name] for entry in scored]
        means = {measure: mean_of(column) for measure, column in defined_values(rows, _measures(rows)).items()}
        bounds[name] = {"space": space, "mean": means}
    return {
        "images": len(scored),
        "images_without_depth": without,
        "images_with_few_pixels": [e["key"] for e in entries if e["valid_pixels"] and not is_scored(e)],
        "images_upside_down": [entry["key"] for entry in scored if entry["scale"] < 0],
        "mean": {measure: mean_of(column) for measure, column in values.items()},
        "interval": {measure: bootstrap_interval(column) for measure, column in values.items()},
        "counts": {measure: len(column) for measure, column in values.items()},
        "ceilings": bounds,
    }


def is_scored(entry: Mapping[str, Any]) -> bool:
    """Returns whether an image has enough valid pixels for its scores to count."""
    return entry["valid_pixels"] >= MIN_VALID_PIXELS


def format_report(report: Mapping[str, Any]) -> str:
    """Formats a report for a terminal.

    Args:
        report: From `run_evaluation` or `evaluate_predictions`.

    Returns:
        Lines of text without a final newline: the model's row with the upper bounds below it, then every measure with
        its interval.
    """
    settings = report["settings"]
    rows = [(model_label(settings), report["mean"])]
    bounds = report["ceilings"]
    rows += [(_upper_bound_row(name, bounds[name]["space"]), bounds[name]["mean"]) for name in UPPER_BOUNDS if bounds]
    width = max(len(label) for label, _ in rows)
    header = " " * width + "".join(title.rjust(9) for title in TABLE.values())
    lines = [
        f"{settings['benchmark']['title']}: {report['images']} images, each aligned in {settings['alignment']} by "
        f"{settings['alignment_method'].replace('_', ' ')}",
    ]
    lines += format_notes(report)
    lines += ["", header]
    for label, mean in rows:
        lines.append(label.ljust(width) + "".join(format_value(mean.get(measure)).rjust(9) for measure in TABLE))
    if bounds:
        lines += ["", *_reading(settings["alignment"])]
    lines += ["", "mean over the images and its 95 % interval (bootstrap):"]
    name_width = max(len(measure) for measure in report["mean"])
    for measure, mean in report["mean"].items():
        interval, count = report["interval"][measure], report["counts"][measure]
        ends = "" if interval is None else f" {format_interval(interval)}"
        unit = f" {UNITS[measure]}" if measure in UNITS else ""
        partly = "" if count == report["images"] else f"  (defined for {count} images)"
        lines.append(f"  {measure.ljust(name_width)}  {format_value(mean).rjust(7)}{ends}{unit}{partly}")
    return "\n".join(lines)


def format_interval(interval: Sequence[float] | None) -> str:
    """Returns the two ends of an interval with a space before them; nothing without an interval."""
    return "" if interval is None else f" [{format_value(interval[0])}, {format_value(interval[1])}]"


def format_notes(report: Mapping[str, Any]) -> list[str]:
    """Returns what must be known about single images before the means are read."""
    without, few = report["images_without_depth"], report["images_with_few_pixels"]
    upside_down = report["images_upside_down"]
    lines = []
    if without:
        lines.append(f"{len(without)} more without a valid pixel are not scored, the first is {without[0]}")
    if few:
        lines.append(
            f"{len(few)} more with fewer than {MIN_VALID_PIXELS} valid pixels are not scored, the first is {few[0]}"
        )
    if upside_down:
        lines += [
            f"Upside down: {len(upside_down)} of {report['images']} predictions, the first is {upside_down[0]}. Near and "
            "far are swapped, and the",
            "alignment has a negative scale. They count with their scores after alignment, as in the field's protocol.",
        ]
    return lines


def model_label(settings: Mapping[str, Any]) -> str:
    """Returns what tables call the model or the predictions."""
    if "predictions" in settings:
        return f"{settings['predictions']['name']} ({settings['predictions']['form']})"
    steps, members = settings["num_inference_steps"], settings["ensemble_size"]
    label = f"{settings['model']['name']}, {steps} step{'s' * (steps > 1)}"
    return label + (f", ensemble of {members}" if members > 1 else "")


def _upper_bound_row(name: str, space: str) -> str:
    label = "  ... + disparity" if (name, space) == ("output", "disparity") else UPPER_BOUND_LABELS[name]
    return f"{label} (in {space})"


def _reading(space: str) -> list[str]:
    """Returns how the upper bounds are read."""
    lines = ["Below the model are upper bounds: the true depth itself, after each step of being represented by the model."]
    if space in ("depth", "disparity"):
        return [
            *lines,
            "Compare the model with the last one: the difference is the network's error. The difference between the last",
            f"and the one before is what aligning in {space} costs any network.",
        ]
    if space == "log":
        return [
            *lines,
            "Compare the model with the autoencoder's row: the difference is the network's error. The last row shows",
            "what is lost by using `prediction` (exp, min-max) instead of the log depth.",
        ]
    return [
        *lines,
        "They are aligned and the model is not: the difference includes the scale and shift of each image.",
    ]


def _measures(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the measures that entries have, in order."""
    return list(dict.fromkeys(name for entry in entries for name in entry if name not in NOT_MEASURES))
