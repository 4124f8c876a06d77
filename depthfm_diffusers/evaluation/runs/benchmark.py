"""Running a model over a benchmark: every image once, then the report and a picture."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ...inference.prediction import DepthModel
from ...inference.result_folder import describe_environment, describe_scheduler, hardware_name
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ..data.open_benchmark import BenchmarkData
from .contact_sheet import contact_sheet, pick_images
from .plan import ScoringPlan
from .protocols import describe_scoring, scoring_versions
from .resumable_run import named_image, run_over_images
from .scoring import EvaluationSettings, Protocol, check_spaces, predict_sample, score_sample


def run_evaluation(
    pipe: DepthModel,
    data: BenchmarkData,
    settings: EvaluationSettings,
    output: str | os.PathLike[str],
    model: Mapping[str, Any],
    contact_sheet_path: str | os.PathLike[str] | None = None,
    processes: PartialState | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Scores a model on every image of a benchmark and writes the report.

    A run that was stopped is resumed by the same call, see `resumable_run`; a call with another model, other data,
    settings or versions is refused.

    Args:
        pipe: The pipeline, on its device, quiet: a `DepthFMPipeline` or diffusers' `MarigoldDepthPipeline`.
        data: The benchmark, from `open_benchmark`.
        settings: What to evaluate with.
        output: The JSON file to write; its folder is made if there is none.
        model: What identifies the model in the report: `name`, which may differ when a run is resumed, and what may not,
            such as `sha256` from `model_fingerprint`.
        contact_sheet_path: PNG file of the best, median and worst images to write; `None` for none.
        processes: See `run_over_images`.
        on_progress: See `run_over_images`.

    Returns:
        The report, on every process: what `ScoringPlan.report` makes, `per_image` and `time`.

    Raises:
        ImportError: If a protocol needs a package that is not installed.
        OSError: If a file cannot be read or written.
        ValueError: If the model's predictions cannot be aligned as asked for, if the results in the folder are of
            another evaluation or damaged, if an image cannot be used (the message names it), or if no image has enough
            valid pixels.
        RuntimeError: If the network's output is not finite, or a process left images out.
    """
    plan = ScoringPlan(data, settings)
    check_spaces(pipe, plan.spaces)
    protocol = Protocol.resolve(settings, data.config, pipe)
    described = describe_evaluation(pipe, data, settings, protocol, model)
    protocols = [replace(protocol, alignment=space) for space in plan.spaces]
    # A resumed run may name the model by another path; the model itself must be the same.
    identity = copy.deepcopy(described)
    del identity["settings"]["model"]["name"]

    def score(index: int) -> dict[str, Any]:
        with named_image(data.keys[index]):
            return plan.entry(score_sample(pipe, plan.samples(index), protocols))

    return run_over_images(
        data.keys[: settings.limit],
        score,
        lambda entries: plan.report(described, entries),
        Path(output),
        identity,
        draw=lambda entries: contact_sheet(
            plan.shown,
            pick_images(plan.shown_entries(entries)),
            lambda sample: predict_sample(pipe, sample, protocols[0])[0].depth,
        ),
        picture_path=contact_sheet_path,
        threads=settings.threads,
        processes=processes,
        on_progress=on_progress,
    )


def describe_evaluation(
    pipe: DepthModel,
    data: BenchmarkData,
    settings: EvaluationSettings,
    protocol: Protocol,
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """Describes all that the results of an evaluation depend on.

    Args:
        pipe: The pipeline.
        data: The benchmark.
        settings: What to evaluate with.
        protocol: The same with every default filled in.
        model: What identifies the model.

    Returns:
        A dictionary that JSON can hold, with `settings` and `versions`.
    """
    environment = describe_environment(pipe)
    if isinstance(pipe, DepthFMPipeline):
        kind = {"rescale_self_attention": pipe.config.rescale_self_attention}
    else:
        kind = {"class": type(pipe).__name__, "prediction_type": pipe.config.prediction_type}
    # Only another than the default: reports of earlier versions have no place for it.
    upper_bounds = {"depth_normalization": protocol.depth_normalization}
    return {
        "settings": {
            "benchmark": data.config.settings(),
            "data": {"images": len(data), "fingerprint": data.fingerprint()},
            "model": {**model, **kind},
            **asdict(protocol.prediction),
            **describe_scoring(settings, data.config),
            "limit": settings.limit,
            "scheduler": describe_scheduler(pipe.scheduler),
            "device": hardware_name(pipe.device),
            "dtype": environment["dtype"],
            "threads": settings.threads,
            **(upper_bounds if protocol.depth_normalization != "depthfm" else {}),
        },
        "versions": environment["versions"] | scoring_versions(settings, data.config),
    }
