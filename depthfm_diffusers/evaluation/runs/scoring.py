"""The scores of one image: its prediction, and the ceilings, aligned to the truth and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...inference.prediction import PredictionSettings, predict_image
from ..metrics.alignment import (ALIGNMENT_METHODS, ALIGNMENT_SPACES, Alignment, align, prediction_in_space,)
from .upper_bounds import (ceiling_spaces, true_log_depths,)
from ..data.configs import BenchmarkConfig
from ..data.open_benchmark import Sample
from ..metrics.metrics import all_metrics
from ..metrics.uncertainty import (rank_correlation, sparsification_error,)


@dataclass(frozen=True)
class EvaluationSettings:
    """What a model is evaluated with. `None` leaves a value to the benchmark, or else to the model.

    Attributes:
        num_inference_steps: Steps from image to depth; `None` is the model's default.
        ensemble_size: Members whose log depths are averaged; from 2 on, their spread is scored as well.
        seed: Seed of the noise, set anew for each image, so that a result does not depend on what else is evaluated.
        processing_resolution: Longer side in pixels at which the network sees the image, 0 for that of the image;
            `None` is the benchmark's if it fixes one, otherwise the model's default.
        batch_size: Ensemble members that go through the network at once.
        alignment: One of `alignment.ALIGNMENT_SPACES`; `None` is the benchmark's.
        alignment_method: One of `alignment.ALIGNMENT_METHODS`; `None` is the benchmark's.
        limit: Evaluate only the first images, this many; `None` is all.
        threads: Threads of a process on the CPU. Another number changes the last digits of results, as sums are then
            taken in another order; several processes are the better use of many cores.

    Raises:
        ValueError: If a value is out of its range.
    """

    num_inference_steps: int | None = None
    ensemble_size: int = 1
    seed: int = 0
    processing_resolution: int | None = None
    batch_size: int = 1
    alignment: str | None = None
    alignment_method: str | None = None
    limit: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded."""
        self.for_prediction()
        for name, choices in (("alignment", ALIGNMENT_SPACES), ("alignment_method", ALIGNMENT_METHODS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"`{name}` must be one of {choices} or None, got {value!r}.")
        for name in ("limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")

    def for_prediction(self) -> PredictionSettings:
        """The part that `depthfm predict` has as well.

        Raises:
            ValueError: If a value is out of its range.
        """
        return PredictionSettings(
            num_inference_steps=self.num_inference_steps,
            ensemble_size=self.ensemble_size,
            seed=self.seed,
            processing_resolution=self.processing_resolution,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True)
class Protocol:
    """How images are predicted and scored, every default filled in.

    Attributes:
        num_inference_steps: Steps from image to depth.
        ensemble_size: Members whose log depths are averaged.
        seed: Seed of each image's noise.
        processing_resolution: Longer side in pixels that the network sees, 0 for the image's own.
        batch_size: Ensemble members that go through the network at once.
        alignment: Space of the alignment.
        alignment_method: Method of the alignment.
        max_depth: Metres; aligned depth is clipped to it. `None`: not from above.
    """

    num_inference_steps: int
    ensemble_size: int
    seed: int
    processing_resolution: int
    batch_size: int
    alignment: str
    alignment_method: str
    max_depth: float | None

    @classmethod
    def resolve(cls, settings: EvaluationSettings, config: BenchmarkConfig, pipe: DepthFMPipeline) -> Protocol:
        """Fills in what settings leave to the benchmark and to the model."""
        resolution = settings.processing_resolution
        if resolution is None:
            resolution = config.processing_resolution
        if resolution is None:
            resolution = pipe.default_processing_resolution
        return cls(
            num_inference_steps=settings.num_inference_steps or pipe.default_num_inference_steps,
            ensemble_size=settings.ensemble_size,
            seed=settings.seed,
            processing_resolution=resolution,
            batch_size=settings.batch_size,
            alignment=settings.alignment or config.alignment,
            alignment_method=settings.alignment_method or config.alignment_method,
            max_depth=config.max_depth,
        )


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
    settings = PredictionSettings(
        protocol.num_inference_steps,
        protocol.ensemble_size,
        protocol.seed,
        protocol.processing_resolution,
        protocol.batch_size,
    )
    found = predict_image(pipe, sample.image, settings, output_uncertainty=protocol.ensemble_size > 1)
    in_space = found.depth if protocol.alignment == "depth" else prediction_in_space(found.log_depth, protocol.alignment)
    return _align(in_space, sample, protocol), found.uncertainty


def score_sample(pipe: DepthFMPipeline, sample: Sample, protocol: Protocol) -> dict[str, Any]:
    """Scores an image.

    Args:
        pipe: The pipeline.
        sample: The image with its truth.
        protocol: How.

    Returns:
        What JSON can hold: `key`, `valid_pixels`; and if there are any, `scale` and `shift` of the alignment, the
        values of `metrics.all_metrics` (`None` where one is not defined), `ceilings` with those of each ceiling, and
        of an ensemble `ause` and `uncertainty_rank_correlation`, for the absolute relative error of each pixel.
    """
    entry: dict[str, Any] = {"key": sample.key, "valid_pixels": int(sample.valid.sum())}
    if not sample.valid.any():
        return entry
    aligned, uncertainty = predict_sample(pipe, sample, protocol)
    entry |= {"scale": float(aligned.scale), "shift": float(aligned.shift)}
    entry |= _measure(aligned.depth, sample)
    if uncertainty is not None:
        entry |= _score_uncertainty(uncertainty, aligned.depth, sample)
    entry["ceilings"] = score_ceilings(pipe, sample, protocol)
    return entry


def score_ceilings(pipe: DepthFMPipeline, sample: Sample, protocol: Protocol) -> dict[str, dict[str, float | None]]:
    """The measures of the true depth after each part of its way through the model, see `ceilings`."""
    log_depths = dict(
        zip(
            ("normalized", "autoencoded"),
            true_log_depths(pipe, sample.depth, protocol.max_depth, protocol.processing_resolution),
            strict=True,
        )
    )
    log_depths["output"] = log_depths["autoencoded"]
    scores = {}
    for name, space in ceiling_spaces(protocol.alignment).items():
        prediction = prediction_in_space(log_depths[name], space)
        aligned = _align(prediction, sample, replace(protocol, alignment=space))
        scores[name] = _measure(aligned.depth, sample)
    return scores


def _align(prediction: NDArray[np.floating], sample: Sample, protocol: Protocol) -> Alignment:
    return align(
        prediction, sample.depth, sample.valid, protocol.alignment, protocol.alignment_method, protocol.max_depth
    )


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
    """Python's floats, and `None` for what is not defined: JSON has no NaN."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
