"""From the scores of single images to the report of depth adherence, and to the table that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..choices import ADHERENCE_FORMAT
from ..runs.means import BOOTSTRAP, bootstrap_interval, defined_values, format_value, mean_of
from .measures import MEASURES, REFERENCE

COMPARED = ("none", "shuffled")
TABLE = {"abs_rel": "AbsRel", "delta1": "δ1", "boundary_f1": "edge F1", "correlation": "correlation"}
ROWS = {
    REFERENCE: "the photo, autoencoded",
    "depth": "generated with its depth",
    "shuffled": "with another photo's depth",
    "none": "without depth",
}
OTHERS = {"none": "without", "shuffled": "with another photo's depth"}
CELL = 24


def build_adherence_report(entries: Sequence[Mapping[str, Any]], conditions: Sequence[str]) -> dict[str, Any]:
    """Puts a report together, without settings, `per_image` and `time`.

    Args:
        entries: Of each image, the scores under each condition and of the reference; `None` where one is not defined.
        conditions: The conditions that images were generated under.

    Returns:
        What JSON can hold: `format`; `images`, how many; `mean`, `interval` (bootstrap, 95 %) and `counts` (images
        where it is defined) of each measure, by condition and for the reference; `bootstrap`, how intervals are made;
        `paired`, by each condition that is compared with `"depth"`: `images`, how many can be compared; `better`, the
        share of them whose AbsRel with its depth is lower (equal is not); `abs_rel_difference`, the mean of AbsRel
        with its depth less that under the condition, and its `interval`.
    """
    values = {
        condition: defined_values([entry[condition] for entry in entries], MEASURES)
        for condition in (REFERENCE, *conditions)
    }
    compared = [condition for condition in COMPARED if condition in conditions and "depth" in conditions]
    return {
        "format": ADHERENCE_FORMAT,
        "images": len(entries),
        "mean": _each(values, mean_of),
        "interval": _each(values, bootstrap_interval),
        "counts": _each(values, len),
        "bootstrap": BOOTSTRAP,
        "paired": {condition: _paired(entries, condition) for condition in compared},
    }


def _each(values: Mapping[str, Mapping[str, Any]], function: Any) -> dict[str, dict[str, Any]]:
    """Applies a function to each measure's values under each condition."""
    return {
        condition: {name: function(column) for name, column in columns.items()}
        for condition, columns in values.items()
    }


def _paired(entries: Sequence[Mapping[str, Any]], condition: str) -> dict[str, Any]:
    """Compares AbsRel with the control of its depth to that under another condition, image by image."""
    pairs = [(one["depth"]["abs_rel"], one[condition]["abs_rel"]) for one in entries]
    differences = [own - other for own, other in pairs if own is not None and other is not None]
    return {
        "images": len(differences),
        "better": mean_of([difference < 0 for difference in differences]),
        "abs_rel_difference": mean_of(differences),
        "interval": bootstrap_interval(differences),
    }


def format_adherence(report: Mapping[str, Any]) -> str:
    """Formats a report for a terminal; the text has no final newline."""
    rows = [condition for condition in ROWS if condition in report["mean"]]
    width = max(len(ROWS[condition]) for condition in rows)
    lines = [
        f"Depth adherence of {report['images']} images: estimated depth of what was generated, against that of the "
        "photo, aligned in log",
        "",
        " " * width + "".join(title.rjust(CELL) for title in TABLE.values()),
    ]
    for condition in rows:
        cells = (_cell(report["mean"][condition][name], report["interval"][condition][name]) for name in TABLE)
        lines.append(ROWS[condition].ljust(width) + "".join(cell.rjust(CELL) for cell in cells))
    lines += ["", "In brackets: 95 % intervals of the means (bootstrap over the images)."]
    for condition, paired in report["paired"].items():
        if paired["better"] is not None:
            difference = _cell(paired["abs_rel_difference"], paired["interval"], "+.3f")
            lines.append(
                f"AbsRel with its depth less that {OTHERS[condition]}: {difference}; it is lower for "
                f"{paired['better']:.0%} of {paired['images']} images."
            )
    for name, title in TABLE.items():
        defined = min(report["counts"][condition][name] for condition in rows)
        if defined < report["images"]:
            lines.append(
                f"{title} is defined for {defined} images: the depth of the others has none of what it measures."
            )
    flagged = sum(any(one["flagged"].values()) for one in report["per_image"])
    if flagged:
        lines.append(
            f"The safety checker has blackened what was generated for {flagged} of the images: see `flagged`."
        )
    return "\n".join(lines)


def _cell(mean: float | None, ends: Sequence[float] | None, form: str = ".3f") -> str:
    if mean is None or ends is None:
        return format_value(None)
    return f"{format_value(mean, form)} [{', '.join(format_value(end, form) for end in ends)}]"
