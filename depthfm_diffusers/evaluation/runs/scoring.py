"""The scores of one image: its prediction and the upper bounds, aligned to the truth and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...inference.prediction import PredictionSettings, predict_image
from ..choices import ALIGNMENT_SPACES
from ..metrics.alignment import MIN_VALID_PIXELS, Alignment, align, prediction_in_space
from .upper_bounds import true_log_depths, upper_bound_spaces
from ..data.configs import BenchmarkConfig
from ..data.open_benchmark import Sample
from ..metrics.metrics import all_metrics
from ..metrics.uncertainty import rank_correlation, sparsification_error


@dataclass(frozen=True)
class EvaluationSettings:
    """How a model is evaluated. `None` leaves a value to the benchmark, or else to the model.

    Attributes:
        prediction: How depth is predicted. A `processing_resolution` of `None` is the benchmark's if it fixes one. Of
            an ensemble of 2 or more members, the spread is scored as well.
        alignment: One of `choices.ALIGNMENT_SPACES`.
        limit: Number of images to evaluate, the first ones; `None` is all.
        threads: Threads of a process on the CPU. Another number changes the last digits of results, as sums are then
            split otherwise. Several processes use many cores better.

    Raises:
        ValueError: If a value is out of its range.
    """

    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    alignment: str | None = None
    limit: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded."""
        if self.alignment is not None and self.alignment not in ALIGNMENT_SPACES:
            raise ValueError(f"`alignment` must be one of {ALIGNMENT_SPACES} or None, got {self.alignment!r}.")
        for name in ("limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


@dataclass(frozen=True)
class Protocol:
    """How images are predicted and scored, every default filled in.

    Attributes:
        prediction: How depth is predicted.
        alignment: Space of the alignment.
        max_depth: Metres; aligned depth is clipped to it. `None`: not from above.
    """

    prediction: PredictionSettings
    alignment: str
    max_depth: float | None

    @classmethod
    def resolve(cls, settings: EvaluationSettings, config: BenchmarkConfig, pipe: DepthFMPipeline) -> Protocol:
        """Fills in what settings leave to the benchmark and to the model."""
        prediction = settings.prediction
        if prediction.processing_resolution is None:
            prediction = replace(prediction, processing_resolution=config.processing_resolution)
        return cls(prediction.resolve(pipe), settings.alignment or config.alignment, config.max_depth)


def predict_sample(
    pipe: DepthFMPipeline, sample: Sample, protocol: Protocol
) -> tuple[Alignment, NDArray[np.float32] | None]:
    """Predicts an image and aligns the prediction to its true depth.

    Args:
        pipe: The pipeline.
        sample: An image with at least one valid pixel.
        protocol: How.

    Returns:
        The prediction in metres, H×W, and the uncertainty of an ensemble, H×W.
    """
    found = predict_image(pipe, sample.image, protocol.prediction, protocol.prediction.ensemble_size > 1)
    in_space = found.depth if protocol.alignment == "depth" else prediction_in_space(found.log_depth, protocol.alignment)
    return _align(in_space, sample, protocol), found.uncertainty


def score_sample(pipe: DepthFMPipeline, sample: Sample, protocol: Protocol) -> dict[str, Any]:
    """Scores an image.

    Args:
        pipe: The pipeline.
        sample: The image with its truth.
        protocol: How.

    Returns:
        What JSON can hold: `key`, `valid_pixels`; and if these are at least `MIN_VALID_PIXELS`, `scale` and `shift` of
        the alignment, the values of `metrics.all_metrics` (`None` where one is not defined), `ceilings` with those of
        each upper bound, and of an ensemble `ause` and `uncertainty_rank_correlation`, for the absolute relative error
        of each pixel.
    """
    if not has_enough_pixels(sample):
        return score_aligned(sample, None)
    aligned, uncertainty = predict_sample(pipe, sample, protocol)
    entry = score_aligned(sample, aligned)
    if uncertainty is not None:
        entry |= _score_uncertainty(uncertainty, aligned.depth, sample)
    entry["ceilings"] = score_upper_bounds(pipe, sample, protocol)
    return entry


def has_enough_pixels(sample: Sample) -> bool:
    """Returns whether an image has as many valid pixels as it takes to be scored."""
    return int(sample.valid.sum()) >= MIN_VALID_PIXELS


def score_aligned(sample: Sample, aligned: Alignment | None) -> dict[str, Any]:
    """Returns `key` and `valid_pixels`, and unless `aligned` is `None`, `scale`, `shift` and the measures."""
    entry: dict[str, Any] = {"key": sample.key, "valid_pixels": int(sample.valid.sum())}
    if aligned is None:
        return entry
    return entry | {"scale": float(aligned.scale), "shift": float(aligned.shift)} | _measure(aligned.depth, sample)


def score_upper_bounds(
    pipe: DepthFMPipeline, sample: Sample, protocol: Protocol
) -> dict[str, dict[str, float | None]]:
    """Returns the measures of each upper bound, see `upper_bounds`."""
    resolution = protocol.prediction.processing_resolution
    normalized, autoencoded = true_log_depths(pipe, sample.depth, protocol.max_depth, resolution)
    log_depths = {"normalized": normalized, "autoencoded": autoencoded, "output": autoencoded}
    scores = {}
    for name, space in upper_bound_spaces(protocol.alignment).items():
        prediction = prediction_in_space(log_depths[name], space)
        aligned = _align(prediction, sample, replace(protocol, alignment=space))
        scores[name] = _measure(aligned.depth, sample)
    return scores


def _align(prediction: NDArray[np.floating], sample: Sample, protocol: Protocol) -> Alignment:
    return align(prediction, sample.depth, sample.valid, protocol.alignment, protocol.max_depth)


def _measure(depth: NDArray[np.float64], sample: Sample) -> dict[str, float | None]:
    return _for_json(all_metrics(depth, sample.depth, sample.valid, sample.intrinsics))


def _score_uncertainty(
    uncertainty: NDArray[np.float32], depth: NDArray[np.float64], sample: Sample
) -> dict[str, float | None]:
    error = np.zeros_like(depth)
    error[sample.valid] = np.abs(depth[sample.valid] / sample.depth[sample.valid] - 1)
    return _for_json(
        {
            "ause": sparsification_error(uncertainty, error, sample.valid).area,
            "uncertainty_rank_correlation": rank_correlation(uncertainty, error, sample.valid),
        }
    )


def _for_json(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns Python's floats, and `None` for what is not defined: JSON has no NaN."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
