"""Validation of a depth pipeline on frames with known depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from ...depth_normalization import DepthNormalization, normalize_log_depth
from ...evaluation.metrics.alignment import align
from ...evaluation.metrics.metrics import absolute_relative_error, delta_accuracy
from ...inference.prediction import PredictionSettings, predict_image
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ..data.depth_transforms import frame_to_view, image_tensor
from ..data.sources import MixedFrames
from .completion_validation import score_completion
from .validation import Validation, picture_grid, read_frames


@dataclass(frozen=True)
class DepthValidationSettings:
    """How validation predicts and shows frames.

    Attributes:
        processing_resolution: Longer side at which depth is predicted, pixels; 0: the frame's own size.
        skip_bad_frames: Whether a frame that cannot be used is left out, instead of an error.
        normalization: How the true depth is normalised for the picture.
    """

    processing_resolution: int = 0
    skip_bad_frames: bool = False
    normalization: DepthNormalization = field(default_factory=DepthNormalization)


def validate_depth(
    pipe: DepthFMPipeline,
    unet: UNet2DConditionModel,
    frames: MixedFrames,
    scored: Sequence[int],
    shown: Sequence[int],
    settings: DepthValidationSettings,
) -> Validation:
    """Validates a UNet on held-out frames.

    Args:
        pipe: Gets the UNet.
        unet: As it is now.
        frames: All frames.
        scored: Frames that are scored, at one step: without points and, if the model takes partial depth, with.
        shown: Frames in the picture: image, truth, prediction at 1, 2 and 4 steps.
        settings: How.
    """
    pipe.unet = unet
    scores = score_frames(pipe, frames, scored, 1, settings)
    if pipe.takes_partial_depth:
        scores |= score_completion(pipe, frames, scored, settings.processing_resolution, settings.skip_bad_frames)
    picture = depth_grid(pipe, frames, shown, (1, 2, 4), settings)
    return Validation(scores, "image | truth | 1, 2, 4 steps", picture)


def predict_frame(pipe: DepthFMPipeline, image: np.ndarray, steps: int, processing_resolution: int) -> np.ndarray:
    """Predicts the log depth (H×W) of one frame (H×W×3, uint8), always with the same noise."""
    settings = PredictionSettings(steps, processing_resolution=processing_resolution)
    return predict_image(pipe, image_tensor(image)[None], settings).log_depth


def score_log_depth(log_depth: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """Scores a log depth by AbsRel and δ1: its exponential aligned in depth, and itself aligned in log depth.

    Args:
        log_depth: H×W, affine-invariant.
        depth: H×W, metres; positive where known, which must be somewhere.
    """
    valid = depth > 0
    scores = {}
    for space, prediction in (("depth", np.exp(log_depth)), ("log", log_depth)):
        aligned = align(prediction, depth, valid, space).depth
        scores[f"abs_rel_{space}"] = float(absolute_relative_error(aligned, depth, valid))
        scores[f"delta1_{space}"] = float(delta_accuracy(aligned, depth, valid))
    return scores


def score_frames(
    pipe: DepthFMPipeline,
    frames: MixedFrames,
    indices: Sequence[int],
    steps: int,
    settings: DepthValidationSettings = DepthValidationSettings(),
) -> dict[str, float]:
    """Returns mean scores over frames, see `score_log_depth`; frames without any depth are left out.

    Raises:
        ValueError: If no frame is left.
    """
    results = []
    for frame in read_frames(frames, indices, settings.skip_bad_frames):
        if (frame.depth > 0).any():
            log_depth = predict_frame(pipe, frame.image, steps, settings.processing_resolution)
            results.append(score_log_depth(log_depth, frame.depth))
    if not results:
        raise ValueError("None of the validation frames has a valid depth.")
    return {name: float(np.mean([r[name] for r in results])) for name in results[0]}


def depth_grid(
    pipe: DepthFMPipeline,
    frames: MixedFrames,
    indices: Sequence[int],
    steps: Sequence[int],
    settings: DepthValidationSettings = DepthValidationSettings(),
) -> np.ndarray:
    """Draws a row per frame: image, true normalised log depth, prediction at each number of steps. H×W×3, uint8."""
    rows = []
    for frame in read_frames(frames, indices, settings.skip_bad_frames):
        view = frame_to_view(frame)
        maps = [predict_frame(pipe, frame.image, n, settings.processing_resolution) for n in steps]
        truth = normalize_log_depth(view.depth, settings.normalization, view.sky).values
        rows.append([view.image * 2 - 1, truth, *(torch.from_numpy(one)[None] for one in maps)])
    return picture_grid(rows)
