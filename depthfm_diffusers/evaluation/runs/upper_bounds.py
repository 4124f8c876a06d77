"""Upper bounds of a model's scores: the true depth itself, represented as the model represents depth.

Three upper bounds, each scored as a prediction would be:

1. `normalized`: the true depth's normalised log depth, as the model was trained on it: by default 2 % and 98 %
   quantiles, clipped to [-1, 1]; aligned in log.
2. `autoencoded`: the same, encoded and decoded at the size at which images are processed; aligned in log.
3. `output`: the same in the form in which the pipeline returns it, aligned in the benchmark's space. In `depth` that
   is exp and min-max (`DepthFMOutput.prediction`), in `disparity` exp of the negative. In `log` it would equal (2),
   and in `none` it would have no meaning, as a normalised depth is not in metres: for these two spaces it is exp and
   min-max aligned in depth, which shows what is lost by using `prediction` instead of the log depth.

By the protocol `ppd`, there are the first two, aligned by RANSAC of log(depth + 1) as a prediction is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..choices import LOG_PLUS_ONE
from ...depth_normalization import DepthNormalization, normalize_log_depth
from ...image_processing import process_image, resize, unpad
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline

UPPER_BOUNDS = ("normalized", "autoencoded", "output")


def upper_bound_spaces(space: str) -> dict[str, str]:
    """Returns the space in which each upper bound is aligned, if predictions are aligned in `space`."""
    if space == LOG_PLUS_ONE:
        return {"normalized": space, "autoencoded": space}
    return {
        "normalized": "log",
        "autoencoded": "log",
        "output": space if space in ("depth", "disparity") else "depth",
    }


@torch.no_grad()
def true_log_depths(
    pipe: DepthFMPipeline,
    depth: NDArray[np.float32],
    max_depth: float | None,
    processing_resolution: int | None,
    normalization: DepthNormalization = DepthNormalization(),
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Brings the true depth into the form of the pipeline's `log_depth`: normalised, and also autoencoded.

    The quantiles are those of all known depths up to `max_depth`. Of these, depths beyond the cap of the normalisation
    are represented by the cap, as training has shown the model no larger ones. Holes are filled from the pixels around
    them before the autoencoder: no model has to reproduce their edges.

    Args:
        pipe: The pipeline, for its autoencoder.
        depth: H×W, metres, 0 where not known.
        max_depth: Metres; deeper pixels are holes. `None`: no limit.
        processing_resolution: Longer side in pixels at which the autoencoder sees the map, 0 for its own; `None`: the
            model's default.
        normalization: How the model's training normalised depth.

    Returns:
        Two maps H×W, float32: normalised (in [-1, 1] if that clips); and the same, encoded and decoded.
    """
    if processing_resolution is None:
        processing_resolution = pipe.default_processing_resolution
    truth = torch.from_numpy(depth)[None]
    if max_depth is not None:
        truth = torch.where(truth <= max_depth, truth, 0)
    if normalization.cap is not None:
        truth = truth.clamp(max=normalization.cap)
    normalized = normalize_log_depth(truth, normalization)
    filled = fill_holes(normalized.values, normalized.known)
    # As the pipeline does with an image: resized, then padded. It takes [0, 1] and gives [-1, 1]; values that are not
    # clipped are scaled to that range for it.
    scale = filled.abs().max().clamp_min(1)
    processed = process_image(
        ((filled / scale + 1) / 2).expand(1, 3, -1, -1), processing_resolution, "bilinear", pipe.vae_scale_factor
    )
    pixels = (processed.pixels * scale).to(pipe._execution_device)
    decoded = pipe.decode_depth(pipe.encode_image(pixels))
    restored = resize(unpad(decoded, processed.padding), processed.original_size, "bilinear")
    return normalized.values[0].numpy(), restored[0, 0].cpu().numpy()


def fill_holes(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Fills unknown pixels with means of known ones, taken over the smallest blocks (2×2, 4×4, …) that have any.

    Args:
        values: 1×H×W.
        known: 1×H×W, bool; known pixels keep their values.

    Returns:
        1×H×W; `values` themselves if no pixel is known, or all are.
    """
    if known.all() or not known.any():
        return values
    weight = known.to(values.dtype)
    share = F.avg_pool2d(weight, 2, ceil_mode=True)
    mean = F.avg_pool2d(torch.where(known, values, 0.0), 2, ceil_mode=True) / torch.where(share > 0, share, 1.0)
    coarse = fill_holes(mean, share > 0)
    height, width = values.shape[-2:]
    spread = coarse.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)[..., :height, :width]
    return torch.where(known, values, spread)
