"""The scores of one image: its prediction and the upper bounds, aligned to the truth and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...depth_normalization import NORMALIZATIONS
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...inference.prediction import DepthModel, PredictionSettings, predict_affine, predict_image
from ..choices import ALIGNMENT_SPACES, DEPTH_NORMALIZATIONS, LOG_PLUS_ONE, PREDICTION_FORMS, PROTOCOL_CHOICES
from ..metrics.alignment import MIN_VALID_PIXELS, Alignment, align, prediction_in_space
from ..metrics.ransac import RansacAlignment, align_log_ransac, prediction_for_ransac
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
        protocol: One of `choices.PROTOCOL_CHOICES`: scores by named protocols in place of the benchmark's own, see
            `protocols`; not with `alignment`.
        depth_normalization: How the model's training normalised depth, one of `choices.DEPTH_NORMALIZATIONS`; for the
            upper bounds.

    Raises:
        ValueError: If a value is out of its range.
    """

    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    alignment: str | None = None
    limit: int | None = None
    threads: int = 1
    protocol: str | None = None
    depth_normalization: str = "depthfm"

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded."""
        if self.alignment is not None and self.alignment not in ALIGNMENT_SPACES:
            raise ValueError(f"`alignment` must be one of {ALIGNMENT_SPACES} or None, got {self.alignment!r}.")
        if self.protocol is not None and self.protocol not in PROTOCOL_CHOICES:
            raise ValueError(f"`protocol` must be one of {PROTOCOL_CHOICES} or None, got {self.protocol!r}.")
        if self.protocol is not None and self.alignment is not None:
            raise ValueError("`protocol` says what is aligned, and how: leave out `alignment`.")
        if self.depth_normalization not in DEPTH_NORMALIZATIONS:
            raise ValueError(
                f"`depth_normalization` must be one of {DEPTH_NORMALIZATIONS}, got {self.depth_normalization!r}."
            )
        for name in ("limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


@dataclass(frozen=True)
class Protocol:
    """How images are predicted and scored, every default filled in.

    Attributes:
        prediction: How depth is predicted.
        alignment: Space of the alignment, one of `choices.ALIGNMENT_SPACES` or `choices.LOG_PLUS_ONE`.
        max_depth: Metres; aligned depth is clipped to it. `None`: not from above.
        depth_normalization: See `EvaluationSettings`.
    """

    prediction: PredictionSettings
    alignment: str
    max_depth: float | None
    depth_normalization: str = "depthfm"

    @classmethod
    def resolve(cls, settings: EvaluationSettings, config: BenchmarkConfig, pipe: DepthModel) -> Protocol:
        """Fills in what settings leave to the benchmark and to the model."""
        prediction = settings.prediction
        if prediction.processing_resolution is None:
            prediction = replace(prediction, processing_resolution=config.processing_resolution)
        alignment = settings.alignment or config.alignment
        return cls(prediction.resolve(pipe), alignment, config.max_depth, settings.depth_normalization)


@dataclass(frozen=True)
class PredictedMaps:
    """What a model predicts of an image.

    Attributes:
        in_space: Returns the map, H×W, that is aligned in a space.
        uncertainty: H×W; `None` without an ensemble.
    """

    in_space: Callable[[str], NDArray[np.floating]]
    uncertainty: NDArray[np.float32] | None


def check_spaces(pipe: DepthModel, spaces: Sequence[str]) -> None:
    """Checks that a model's predictions can be aligned in spaces, before any image is predicted.

    Raises:
        ValueError: If an affine-invariant prediction would have to be converted, for which its offset must be known.
    """
    if isinstance(pipe, DepthFMPipeline):
        return
    form = pipe.config.prediction_type
    if form not in PREDICTION_FORMS:
        raise ValueError(f"The model's `prediction_type` is {form!r}: it must be 'depth' or 'disparity' to be scored.")
    for space in spaces:
        if space not in (form, LOG_PLUS_ONE):
            choices = f"`alignment` {form!r} or `protocol` " + ("'all'" if form == "depth" else "'ppd'")
            raise ValueError(
                f"A {type(pipe).__name__} predicts {form} up to scale and shift, which cannot be aligned in {space}: "
                f"choose {choices} (--alignment, --protocol)."
            )


def predict_maps(pipe: DepthModel, image: NDArray[np.uint8], settings: PredictionSettings) -> PredictedMaps:
    """Predicts an image, H×W×3, once for all alignments.

    The maps of a `MarigoldDepthPipeline` are there in the space of its `prediction_type` and in `LOG_PLUS_ONE` only.
    """
    with_uncertainty = settings.ensemble_size > 1
    if not isinstance(pipe, DepthFMPipeline):
        affine, uncertainty = predict_affine(pipe, image, settings, with_uncertainty)
        form = pipe.config.prediction_type
        maps = {form: affine, LOG_PLUS_ONE: prediction_for_ransac(affine, form)}
        return PredictedMaps(lambda space: maps[space], uncertainty)
    found = predict_image(pipe, image, settings, with_uncertainty)
    return PredictedMaps(
        lambda space: found.depth if space == "depth" else prediction_in_space(found.log_depth, space),
        found.uncertainty,
    )


def predict_sample(
    pipe: DepthModel, sample: Sample, protocol: Protocol
) -> tuple[Alignment, NDArray[np.float32] | None]:
    """Predicts an image and aligns the prediction to its true depth.

    Args:
        pipe: The pipeline.
        sample: An image with at least one valid pixel.
        protocol: How.

    Returns:
        The prediction in metres, H×W, and the uncertainty of an ensemble, H×W.
    """
    found = predict_maps(pipe, sample.image, protocol.prediction)
    return align_map(found.in_space(protocol.alignment), sample, protocol), found.uncertainty


def score_sample(pipe: DepthModel, samples: Sequence[Sample], protocols: Sequence[Protocol]) -> list[dict[str, Any]]:
    """Scores an image by one protocol or several, with one prediction.

    Args:
        pipe: The pipeline.
        samples: The image with its truth, and the pixels that each protocol scores.
        protocols: The protocols, which differ in their alignment only.

    Returns:
        What JSON can hold, by each protocol: `key`, `valid_pixels`; and if these are at least `MIN_VALID_PIXELS`,
        `scale` and `shift` of the alignment, `fit` of `ransac.align_log_ransac`, the values of `metrics.all_metrics`
        (`None` where one is not defined), of a DepthFM model `ceilings` with those of each upper bound, and of an
        ensemble `ause` and `uncertainty_rank_correlation`, for the absolute relative error of each pixel.
    """
    if not any(map(has_enough_pixels, samples)):
        return [score_aligned(sample, None) for sample in samples]
    found = predict_maps(pipe, samples[0].image, protocols[0].prediction)
    bounds = _upper_bound_maps(pipe, samples[0], protocols[0]) if isinstance(pipe, DepthFMPipeline) else None
    entries = []
    for sample, protocol in zip(samples, protocols, strict=True):
        if not has_enough_pixels(sample):
            entries.append(score_aligned(sample, None))
            continue
        aligned = align_map(found.in_space(protocol.alignment), sample, protocol)
        entry = score_aligned(sample, aligned)
        if found.uncertainty is not None:
            entry |= _score_uncertainty(found.uncertainty, aligned.depth, sample)
        if bounds is not None:
            entry["ceilings"] = _score_bounds(bounds, sample, protocol)
        entries.append(entry)
    return entries


def has_enough_pixels(sample: Sample) -> bool:
    """Returns whether an image has as many valid pixels as it takes to be scored."""
    return int(sample.valid.sum()) >= MIN_VALID_PIXELS


def score_aligned(sample: Sample, aligned: Alignment | None) -> dict[str, Any]:
    """Returns `key` and `valid_pixels`, and unless `aligned` is `None`, `scale`, `shift` and the measures."""
    entry: dict[str, Any] = {"key": sample.key, "valid_pixels": int(sample.valid.sum())}
    if aligned is None:
        return entry
    entry |= {"scale": float(aligned.scale), "shift": float(aligned.shift)}
    if isinstance(aligned, RansacAlignment):
        entry["fit"] = str(aligned.fit)
    return entry | _measure(aligned.depth, sample)


def score_upper_bounds(
    pipe: DepthFMPipeline, sample: Sample, protocol: Protocol
) -> dict[str, dict[str, float | None]]:
    """Returns the measures of each upper bound, see `upper_bounds`."""
    return _score_bounds(_upper_bound_maps(pipe, sample, protocol), sample, protocol)


def _upper_bound_maps(pipe: DepthFMPipeline, sample: Sample, protocol: Protocol) -> dict[str, NDArray[np.float32]]:
    resolution = protocol.prediction.processing_resolution
    normalization = NORMALIZATIONS[protocol.depth_normalization]
    normalized, autoencoded = true_log_depths(pipe, sample.depth, protocol.max_depth, resolution, normalization)
    return {"normalized": normalized, "autoencoded": autoencoded, "output": autoencoded}


def _score_bounds(
    log_depths: Mapping[str, NDArray[np.float32]], sample: Sample, protocol: Protocol
) -> dict[str, dict[str, float | None]]:
    scores = {}
    for name, space in upper_bound_spaces(protocol.alignment).items():
        prediction = prediction_in_space(log_depths[name], space)
        aligned = align_map(prediction, sample, replace(protocol, alignment=space))
        scores[name] = _measure(aligned.depth, sample)
    return scores


def align_map(prediction: NDArray[np.floating], sample: Sample, protocol: Protocol) -> Alignment:
    """Aligns a map, H×W, to the true depth of an image as a protocol does."""
    if protocol.alignment == LOG_PLUS_ONE:
        return align_log_ransac(prediction, sample.depth, sample.valid)
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
