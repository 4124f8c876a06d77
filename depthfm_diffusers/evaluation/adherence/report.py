"""The figures in a report of depth adherence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..runs.report import (
    CONFIDENCE,
    RESAMPLES,
    bootstrap_interval,
)
from .measures import (
    MEASURES,
    REFERENCE,
)

REPORT_FORMAT = "depthfm adherence, 1"
COMPARED = ("none", "shuffled")


def build_adherence_report(entries: Sequence[Mapping[str, Any]], conditions: Sequence[str]) -> dict[str, Any]:
    """Means over the images, and how much the control helped.

    Args:
        entries: Of each image, the scores under each condition and of the reference; `None` where one is not defined.
        conditions: Those that there are.

    Returns:
        What JSON can hold: `format`; `images`, how many; `mean`, `interval` (bootstrap, 95 %) and `counts` (images
        where it is defined) of each measure, by condition and for the reference; `bootstrap`, how intervals are made;
        `paired`, by each condition that is compared with `"depth"`: `images`, how many can be compared; `better`, the
        share of them whose AbsRel with its depth is lower (equal is not); `abs_rel_difference`, the mean of AbsRel
        with its depth less that under the condition, and its `interval`.
    """
    values = {
        condition: {name: [e[condition][name] for e in entries if e[condition][name] is not None] for name in MEASURES}
        for condition in (REFERENCE, *conditions)
    }
    compared = [condition for condition in COMPARED if condition in conditions and "depth" in conditions]
    return {
        "format": REPORT_FORMAT,
        "images": len(entries),
        "mean": _each(values, _mean),
        "interval": _each(values, bootstrap_interval),
        "counts": _each(values, len),
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": 0},
        "paired": {condition: _paired(entries, condition) for condition in compared},
    }


def _each(values: Mapping[str, Mapping[str, Any]], function: Any) -> dict[str, dict[str, Any]]:
    """A function of each measure's values under each condition."""
    return {
        condition: {name: function(column) for name, column in columns.items()}
        for condition, columns in values.items()
    }


def _paired(entries: Sequence[Mapping[str, Any]], condition: str) -> dict[str, Any]:
    """AbsRel with its depth beside that under another condition, image by image."""
    pairs = [(one["depth"]["abs_rel"], one[condition]["abs_rel"]) for one in entries]
    differences = [own - other for own, other in pairs if own is not None and other is not None]
    return {
        "images": len(differences),
        "better": _mean([difference < 0 for difference in differences]),
        "abs_rel_difference": _mean(differences),
        "interval": bootstrap_interval(differences),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(np.array(values, dtype=np.float64))) if values else None
