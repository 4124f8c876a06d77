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
from ..metrics.alignment import Alignment, align
from .contact_sheet import contact_sheet, pick_images
from .report import build_report
from .resumable_run import named_image, run_over_images
from .scoring import EvaluationSettings, has_enough_pixels, score_aligned


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
        The report, on every process: what `report.build_report` makes, `per_image` and `time`. It has no upper bounds:
        these are those of a model.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If the results in the folder are of another evaluation or damaged, if a map cannot be used (the
            message names it), or if no image has enough valid pixels.
        RuntimeError: If a process left images out.
    """
    space = settings.alignment or data.config.alignment
    described: dict[str, Any] = {
        "settings": {
            "benchmark": data.config.settings(),
            "data": {"images": len(data), "fingerprint": data.fingerprint()},
            "predictions": {"name": name, "form": predictions.form, "sha256": predictions.fingerprint()},
            "alignment": space,
            "alignment_method": data.config.alignment_method,
            "max_depth": data.config.max_depth,
            "limit": settings.limit,
            "threads": settings.threads,
        },
        "versions": describe_versions(),
    }
    # A resumed run may name the predictions by another path.
    identity = copy.deepcopy(described)
    del identity["settings"]["predictions"]["name"]

    def aligned(sample: Sample) -> Alignment:
        values = predictions.read(sample.key, sample.depth.shape, space)
        return align(values, sample.depth, sample.valid, space, data.config.max_depth)

    def score(index: int) -> dict[str, Any]:
        with named_image(data.keys[index]):
            sample = data[index]
            return score_aligned(sample, aligned(sample) if has_enough_pixels(sample) else None)

    return run_over_images(
        data.keys[: settings.limit],
        score,
        lambda entries: build_report(described, entries),
        Path(output),
        identity,
        draw=lambda entries: contact_sheet(
            data, pick_images(entries), lambda sample: np.asarray(aligned(sample).depth)
        ),
        picture_path=contact_sheet_path,
        threads=settings.threads,
        processes=processes,
        on_progress=on_progress,
    )
