"""Validation of a depth pipeline on frames with known depth: scores, and pictures to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.logging import get_logger

from ... import (
    DepthFMOutput,
    DepthFMPipeline,
)
from ...depth_normalization import (
    DepthNormalization,
    normalize_log_depth,
)
from ...evaluation import (
    absolute_relative_error,
    align,
    delta_accuracy,
)
from ...frames import (
    Frame,
    FrameError,
)
from ..data.depth_transforms import frame_to_view
from ..data.sources import MixedFrames

logger = get_logger(__name__)


def read_frames(frames: MixedFrames, indices: Sequence[int], skip_bad_frames: bool) -> Iterator[Frame]:
    """The frames at `indices`; those that cannot be used raise `FrameError`, or are left out with a warning."""
    for index in indices:
        try:
            yield frames[index]
        except FrameError as error:
            if not skip_bad_frames:
                raise
            logger.warning(f"Skipped in validation: {error}")


def predict_frame(
    pipe: DepthFMPipeline, image: np.ndarray, steps: int, processing_resolution: int, seed: int = 0
) -> DepthFMOutput:
    """Predicts one frame (H×W×3, uint8), with noise that depends on the seed alone."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        pixels.to(pipe.device),
        num_inference_steps=steps,
        processing_resolution=processing_resolution,
        generator=generator,
    )


def score_log_depth(log_depth: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """AbsRel and δ1 of a log depth, aligned as its exponential in depth, and as it is in log depth.

    Args:
        log_depth: H×W, affine-invariant.
        depth: H×W, metres; positive where known, somewhere at least.
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
    processing_resolution: int = 0,
    skip_bad_frames: bool = False,
) -> dict[str, float]:
    """Mean scores over frames, see `score_log_depth`; frames without any depth are left out.

    Raises:
        ValueError: If no frame is left.
    """
    results = []
    for frame in read_frames(frames, indices, skip_bad_frames):
        if (frame.depth > 0).any():
            output = predict_frame(pipe, frame.image, steps, processing_resolution)
            results.append(score_log_depth(output.log_depth[0, ..., 0], frame.depth))
    if not results:
        raise ValueError("None of the validation frames has a valid depth.")
    return {name: float(np.mean([r[name] for r in results])) for name in results[0]}


def depth_grid(
    pipe: DepthFMPipeline,
    frames: MixedFrames,
    indices: Sequence[int],
    steps: Sequence[int],
    normalization: DepthNormalization | None = None,
    processing_resolution: int = 0,
    skip_bad_frames: bool = False,
) -> np.ndarray:
    """A row per frame: image, true normalised log depth, prediction at each number of steps. H'×W'×3, uint8."""
    rows = []
    for frame in read_frames(frames, indices, skip_bad_frames):
        view = frame_to_view(frame)
        outputs = [predict_frame(pipe, frame.image, n, processing_resolution) for n in steps]
        predictions = [torch.from_numpy(output.log_depth[0, ..., 0])[None] for output in outputs]
        truth = normalize_log_depth(view.depth, normalization, view.sky).values
        rows.append([view.image * 2 - 1, truth, *predictions])
    return picture_grid(rows)


def picture_grid(rows: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Tiles pictures; smaller ones are filled up at the right and at the bottom.

    Args:
        rows: Per row, as many tensors 3×H×W or 1×H×W in [-1, 1]; values outside are clipped.

    Returns:
        H'×W'×3, uint8.
    """
    height = max(tile.shape[-2] for row in rows for tile in row)
    width = max(tile.shape[-1] for row in rows for tile in row)

    def fill_up(tile: torch.Tensor) -> torch.Tensor:
        padding = (0, width - tile.shape[-1], 0, height - tile.shape[-2])
        return F.pad(tile.float().expand(3, -1, -1), padding, value=1.0)

    grid = torch.cat([torch.cat([fill_up(tile) for tile in row], dim=-1) for row in rows], dim=-2)
    return ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
