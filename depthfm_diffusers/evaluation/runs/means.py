"""Means of scores over images with their intervals, as all reports have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
# How intervals are made, as reports say it.
BOOTSTRAP = {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": 0}


def mean_of(values: Sequence[float]) -> float | None:
    """Returns the mean; `None` without values."""
    return float(np.mean(np.array(values, dtype=np.float64))) if values else None


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


def defined_values(entries: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, list[float]]:
    """Returns, of each measure, its values where it is defined: `None` and missing ones are left out."""
    return {name: [entry[name] for entry in entries if entry.get(name) is not None] for name in measures}


def format_value(value: float | None, form: str = ".3f") -> str:
    """Returns a score as text, a dash where it is not defined."""
    if value is None:
        return "-"
    return f"{value:{form}}" if abs(value) < 1000 else f"{value:.4g}"
