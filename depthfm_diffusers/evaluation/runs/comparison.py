"""Two reports of one benchmark, compared image by image: whether a difference of means is more than chance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..choices import COMPARISON_FORMAT, EVALUATION_FORMAT, PROTOCOLS_FORMAT
from .means import BOOTSTRAP, bootstrap_interval, format_value, mean_of
from .report import NOT_MEASURES

# Settings of an evaluation that decide what its scores mean, as "settings" of a report has them.
PROTOCOL = ("alignment", "alignment_method", "max_depth")
# Measures that are better the higher they are; the others are errors.
HIGHER_IS_BETTER = ("delta1", "delta2", "delta3", "boundary_f1", "uncertainty_rank_correlation")


def read_report(path: Path) -> dict[str, Any]:
    """Reads a report of `depthfm evaluate`, as far as comparing needs it.

    Args:
        path: The report; it may come from anywhere.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such report, or lacks something that is needed.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(report, dict) or report.get("format") not in (EVALUATION_FORMAT, PROTOCOLS_FORMAT):
        raise ValueError(f"{path} is not a report of `depthfm evaluate`.")
    settings, entries = report.get("settings"), report.get("per_image")
    if not isinstance(settings, dict) or not isinstance(entries, list):
        raise ValueError(f"{path} is damaged: it has no `settings` or no `per_image`.")
    scored = "predictions" if "predictions" in settings else "model"
    if not all(isinstance(settings.get(name), dict) for name in ("benchmark", "data", scored)):
        raise ValueError(f"{path} is damaged: `settings` does not say which benchmark, data and model or predictions.")
    if not all(isinstance(entry, dict) and isinstance(entry.get("key"), str) for entry in entries):
        raise ValueError(f"{path} is damaged: an entry of `per_image` has no key.")
    if report["format"] == PROTOCOLS_FORMAT:
        protocols = settings.get("protocols")
        if not isinstance(protocols, dict) or not all(_has_protocols(entry, protocols) for entry in entries):
            raise ValueError(f"{path} is damaged: an entry of `per_image` lacks a protocol of `settings`.")
    return report


def _has_protocols(entry: Mapping[str, Any], names: Iterable[str]) -> bool:
    scores = entry.get("protocols")
    return isinstance(scores, dict) and all(isinstance(scores.get(name), dict) for name in names)


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Compares two reports of one benchmark on the same images.

    Args:
        first: From `read_report`.
        second: Likewise.

    Returns:
        What JSON can hold: `images`, how many both reports have; `measures`, for each measure that both have (by named
        protocols, "PROTOCOL/MEASURE" of the protocols that both have): `means`
        of the two over the `images` where both are defined, the mean `difference` (second minus first), its 95 %
        `interval` (bootstrap over the images, whose pairs stay together), in how many images the second is
        `better`, and in how many `equal`; `settings` that differ between the two; `bootstrap`, how intervals are made.

    Raises:
        ValueError: If the two are not of the same images, or of another protocol: their numbers do not compare.
    """
    _check_comparable(first["settings"], second["settings"])
    entries: list[dict[str, Any]] = [{entry["key"]: _scores(entry) for entry in report["per_image"]} for report in (first, second)]
    if entries[0].keys() != entries[1].keys():
        alone = sorted(entries[0].keys() ^ entries[1].keys())
        raise ValueError(f"The reports are not of the same images: {len(alone)} are in one only, first {alone[0]!r}.")
    measures = {}
    for name in dict.fromkeys(name for one in entries for entry in one.values() for name in entry):
        if _measure_of(name) not in NOT_MEASURES:
            pairs = [(entries[0][key].get(name), entries[1][key].get(name)) for key in entries[0]]
            defined = [(a, b) for a, b in pairs if _is_number(a) and _is_number(b)]
            if defined:
                measures[name] = _compare_measure(name, defined)
    if not measures:
        raise ValueError("The reports share no measure that is defined for an image.")
    return {
        "format": COMPARISON_FORMAT,
        "images": len(entries[0]),
        "measures": measures,
        "settings": {
            name: [first["settings"].get(name), second["settings"].get(name)]
            for name in sorted(first["settings"].keys() | second["settings"].keys())
            if first["settings"].get(name) != second["settings"].get(name)
        },
        "bootstrap": BOOTSTRAP,
    }


def format_comparison(comparison: Mapping[str, Any], names: Sequence[str]) -> str:
    """Formats a comparison for a terminal.

    Args:
        comparison: From `compare_reports`.
        names: What the two reports are called.

    Returns:
        Lines of text without a final newline.
    """
    lines = [f"A: {names[0]}", f"B: {names[1]}", f"{comparison['images']} images, compared one by one"]
    for name, (before, after) in comparison["settings"].items():
        lines.append(f"differs: {name}: {_short(before)} -> {_short(after)}")
    width = max(len(name) for name in comparison["measures"])
    header = ["A", "B", "B - A", "95 % interval", "B better"]
    lines += ["", " " * width + "".join(title.rjust(size) for title, size in zip(header, SIZES, strict=True))]
    protocol = None
    for name, row in comparison["measures"].items():
        if protocol not in (None, name.rpartition("/")[0]):
            lines.append("")  # numbers of two protocols do not compare
        protocol = name.rpartition("/")[0]
        cells = [
            *(format_value(mean) for mean in row["means"]),
            format_value(row["difference"], "+.4f"),
            "[" + ", ".join(format_value(end, "+.4f") for end in row["interval"]) + "]",
            f"{row['better']} of {row['images']}",
        ]
        line = name.ljust(width) + "".join(cell.rjust(size) for cell, size in zip(cells, SIZES, strict=True))
        lines.append(f"{line}  {row['verdict']}")
    lines += [
        "",
        "The interval is of the mean difference over such images (bootstrap over images, pairs kept together). Where it",
        "holds 0, the difference may be chance. It says nothing of another seed of the training.",
    ]
    return "\n".join(lines)


SIZES = (9, 9, 10, 21, 14)


def _compare_measure(name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    differences = [b - a for a, b in pairs]
    interval = bootstrap_interval(differences) or [0.0, 0.0]
    sign = 1 if _measure_of(name) in HIGHER_IS_BETTER else -1
    if interval[0] <= 0 <= interval[1]:
        verdict = "no clear difference"
    else:
        verdict = "B is better" if sign * interval[0] > 0 else "A is better"
    return {
        "images": len(pairs),
        "means": [mean_of([pair[side] for pair in pairs]) for side in (0, 1)],
        "difference": mean_of(differences),
        "interval": interval,
        "better": sum(sign * difference > 0 for difference in differences),
        "equal": sum(difference == 0 for difference in differences),
        "verdict": verdict,
    }


def _scores(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scores of an image; by named protocols, each under "PROTOCOL/MEASURE"."""
    if "protocols" not in entry:
        return dict(entry)
    return {
        f"{protocol}/{name}": value for protocol, scores in entry["protocols"].items() for name, value in scores.items()
    }


def _measure_of(name: str) -> str:
    """Returns the measure that a name of `_scores` stands for."""
    return name.rpartition("/")[2]


def _check_comparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    if first["data"].get("fingerprint") != second["data"].get("fingerprint"):
        raise ValueError("The reports are of different data: the files or their content differ.")
    named = [set(one.get("protocols", ())) for one in (first, second)]
    shared = named[0] & named[1]
    if any(named) and not shared:
        raise ValueError(
            "The reports have no protocol in common, and numbers of different protocols do not compare: evaluate both "
            "with the same --protocol, or both without."
        )
    before, after = (
        {name: one.get(name) for name in PROTOCOL}
        | {f"protocol {name}": one["protocols"][name] for name in sorted(shared)}
        | {"benchmark": one["benchmark"]}
        for one in (first, second)
    )
    different = [name for name in before if before[name] != after[name]]
    if different:
        values = "; ".join(f"{name}: {_short(before[name])} and {_short(after[name])}" for name in different)
        raise ValueError(f"The reports are of different protocols, whose numbers do not compare ({values}).")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        value = value["name"]
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
