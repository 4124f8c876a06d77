"""Scoring depth maps that any program has made: every image of a benchmark once, then the report and a picture."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from ...inference.result_folder import describe_versions
from ..data.open_benchmark import BenchmarkData, Sample
from ..data.stored_predictions import StoredPredictions
from ..metrics.alignment import Alignment
from .contact_sheet import contact_sheet, pick_images
from .plan import ScoringPlan
from .protocols import describe_scoring, scoring_versions
from .resumable_run import named_image, run_over_images
from .scoring import EvaluationSettings, Protocol, align_map, has_enough_pixels, score_aligned


def evaluate_predictions(
    data: BenchmarkData,
    predictions: StoredPredictions,
    settings: EvaluationSettings,
    output: str | os.PathLike[str],
    name: str,
    contact_sheet_path: str | os.PathLike[str] | None = None,
    processes: PartialState | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Scores stored depth maps on every image of a benchmark, by the measures and the alignment of `run_evaluation`.

    Args:
        data: The benchmark, from `open_benchmark`.
        predictions: The maps of `data.keys[: settings.limit]`.
        settings: What to evaluate with; `prediction` is not used.
        output: The JSON file to write; its folder is made if there is none.
        name: What the report calls the predictions.
        contact_sheet_path: PNG file of the best, median and worst images to write; `None` for none.
        processes: See `run_over_images`.
        on_progress: See `run_over_images`.

    Returns:
        The report, on every process: what `ScoringPlan.report` makes, `per_image` and `time`. It has no upper bounds:
        these are those of a model.

    Raises:
        ImportError: If a protocol needs a package that is not installed.
        OSError: If a file cannot be read or written.
        ValueError: If the results in the folder are of another evaluation or damaged, if a map cannot be used (the
            message names it), or if no image has enough valid pixels.
        RuntimeError: If a process left images out.
    """
    plan = ScoringPlan(data, settings)
    described: dict[str, Any] = {
        "settings": {
            "benchmark": data.config.settings(),
            "data": {"images": len(data), "fingerprint": data.fingerprint()},
            "predictions": {"name": name, "form": predictions.form, "sha256": predictions.fingerprint()},
            **describe_scoring(settings, data.config),
            "limit": settings.limit,
            "threads": settings.threads,
        },
        "versions": describe_versions() | scoring_versions(settings, data.config),
    }
    # A resumed run may name the predictions by another path.
    identity = copy.deepcopy(described)
    del identity["settings"]["predictions"]["name"]

    protocols = [Protocol(settings.prediction, space, data.config.max_depth) for space in plan.spaces]

    def aligned(sample: Sample, protocol: Protocol) -> Alignment:
        values = predictions.read(sample.key, sample.depth.shape, protocol.alignment)
        return align_map(values, sample, protocol)

    def score(index: int) -> dict[str, Any]:
        with named_image(data.keys[index]):
            scores = [
                score_aligned(sample, aligned(sample, protocol) if has_enough_pixels(sample) else None)
                for sample, protocol in zip(plan.samples(index), protocols, strict=True)
            ]
            return plan.entry(scores)

    return run_over_images(
        data.keys[: settings.limit],
        score,
        lambda entries: plan.report(described, entries),
        Path(output),
        identity,
        draw=lambda entries: contact_sheet(
            plan.shown,
            pick_images(plan.shown_entries(entries)),
            lambda sample: np.asarray(aligned(sample, protocols[0]).depth),
        ),
        picture_path=contact_sheet_path,
        threads=settings.threads,
        processes=processes,
        on_progress=on_progress,
    )
