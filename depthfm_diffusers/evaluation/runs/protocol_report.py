"""The report of an evaluation by named protocols, and its tables, in which each protocol has columns of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..choices import PROTOCOLS_FORMAT
from ..metrics.ransac import RANSAC
from .means import BOOTSTRAP, format_value
from .protocols import MARIGOLD, TITLES
from .report import (
    TABLE,
    UNITS,
    UPPER_BOUND_LABELS,
    format_interval,
    format_notes,
    is_scored,
    model_label,
    summarize,
)

# The measures of the first table; the second has all.
COLUMNS = ("abs_rel", "delta1", "rmse")
CELL = 9
GAP = "   "


def entries_of(entries: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns the entries of a report by protocols as those of a report by one of them."""
    return [{"key": entry["key"], **entry["protocols"][name]} for entry in entries]


def build_protocols_report(described: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts a report together, without its `per_image` and `time`.

    Args:
        described: `settings` and `versions`.
        entries: For each image `key`, and in `protocols`, what `scoring.score_sample` returned by each protocol.

    Returns:
        What JSON can hold: `protocols`, for each what `report.summarize` returns, and by RANSAC
        `images_without_ransac`, the keys of the scored images of which RANSAC found no positive scale; `settings`,
        `versions`; `bootstrap`, how intervals are made.

    Raises:
        ValueError: If no image can be scored by a protocol.
    """
    protocols = {}
    for name, settings in described["settings"]["protocols"].items():
        rows = entries_of(entries, name)
        try:
            protocols[name] = summarize(rows, settings["alignment"])
        except ValueError as error:
            raise ValueError(f"Protocol {name}: {error}") from error
        if settings["alignment_method"] == "ransac":
            fits = {row["key"]: row["fit"] for row in rows if is_scored(row)}
            protocols[name]["images_without_ransac"] = [key for key, fit in fits.items() if fit != RANSAC]
    return {"format": PROTOCOLS_FORMAT, "protocols": protocols, "bootstrap": BOOTSTRAP, **described}


def format_protocols(report: Mapping[str, Any]) -> str:
    """Formats a report by protocols for a terminal.

    Args:
        report: From `run_evaluation` or `evaluate_predictions`, with settings that have a `protocol`.

    Returns:
        Lines of text without a final newline: the model's row with the upper bounds below it, then every measure with
        its interval; each protocol in columns of its own.
    """
    settings, protocols = report["settings"], report["protocols"]
    lines = [f"{settings['benchmark']['title']}: one set of predictions, scored by {', '.join(protocols)}"]
    width = max(map(len, protocols))
    lines += [f"  {name.ljust(width)}  {TITLES[name]}, {one['images']} images" for name, one in protocols.items()]
    for name, one in protocols.items():
        lines += [f"{name}: {note}" for note in [*format_notes(one), *_ransac_notes(one)]]
    lines += ["", *_means_table(settings, protocols), ""]
    if any(one["ceilings"] for one in protocols.values()):
        lines += [
            "Below the model are upper bounds: the true depth itself, after each step of being represented by the",
            "model. Compare the model with the last one in each column"
            + ("; in those of marigold the first two are aligned in log." if MARIGOLD in protocols else "."),
        ]
    if len(protocols) > 1:
        lines.append("Numbers of different protocols do not compare, whatever the model.")
    lines += ["", "mean over the images and its 95 % interval (bootstrap):", *_measures_table(protocols)]
    return "\n".join(lines)


def _ransac_notes(summary: Mapping[str, Any]) -> list[str]:
    without = summary.get("images_without_ransac")
    if not without:
        return []
    return [
        f"RANSAC found no positive scale for {len(without)} of {summary['images']} predictions, the first is "
        f"{without[0]}.",
        "The field `fit` of these images in the report says how each is scaled instead.",
    ]


def _means_table(settings: Mapping[str, Any], protocols: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(bound for one in protocols.values() for bound in one["ceilings"]))
    rows = [(model_label(settings), [one["mean"] for one in protocols.values()])]
    rows += [
        (UPPER_BOUND_LABELS[name], [one["ceilings"].get(name, {}).get("mean", {}) for one in protocols.values()])
        for name in names
    ]
    width = max(len(label) for label, _ in rows)
    group = CELL * len(COLUMNS)
    lines = [
        " " * width + "".join(GAP + name.rjust(group) for name in protocols),
        " " * width + (GAP + "".join(TABLE[measure].rjust(CELL) for measure in COLUMNS)) * len(protocols),
    ]
    for label, means in rows:
        cells = ["".join(format_value(mean.get(measure)).rjust(CELL) for measure in COLUMNS) for mean in means]
        lines.append(label.ljust(width) + "".join(GAP + cell for cell in cells))
    return lines


def _measures_table(protocols: Mapping[str, Mapping[str, Any]]) -> list[str]:
    measures = list(dict.fromkeys(measure for one in protocols.values() for measure in one["mean"]))
    labels = {name: name + (f" ({UNITS[name]})" if name in UNITS else "") for name in measures}
    columns = []
    for name, one in protocols.items():
        cells = [name]
        for measure in measures:
            count = one["counts"].get(measure, 0)
            partly = "" if count == one["images"] else f" of {count}"
            value = format_value(one["mean"].get(measure))
            cells.append(f"{value}{format_interval(one['interval'].get(measure))}{partly}")
        columns.append([cell.ljust(max(map(len, cells))) for cell in cells])
    width = max(map(len, labels.values()))
    rows = zip(["", *labels.values()], *columns, strict=True)
    return [("  " + label.ljust(width) + "".join(GAP + cell for cell in cells)).rstrip() for label, *cells in rows]
