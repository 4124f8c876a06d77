"""What the way of a depth map through the model costs, without the model: the true depth sent along that way.

Three ceilings, one after the other, each scored as a prediction would be:

1. `normalized`: the true depth's normalised log depth, 2 % and 98 % quantiles, clipped to [-1, 1]; aligned in log.
2. `autoencoded`: the same through the autoencoder, at the size at which images are processed; aligned in log.
3. `output`: the same in the output convention, as the pipeline hands it out, aligned in the benchmark's space. In
   `depth` that is exp and min-max (`DepthFMOutput.prediction`), in `disparity` exp of the negative. In `log` it would
   be (2) again and in `none` it would mean nothing, as a normalised depth is not in metres: there the row has exp and
   min-max aligned in depth, what whoever uses `prediction` pays.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...depth_normalization import (DepthNormalization, normalize_log_depth,)
from ...image_processing import (process_image, resize, unpad,)
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline

CEILINGS = ("normalized", "autoencoded", "output")


def ceiling_spaces(space: str) -> dict[str, str]:
    """The space in which each ceiling is aligned, for a benchmark that aligns predictions in `space`."""
    return {
        "normalized": "log",
        "autoencoded": "log",
        "output": space if space in ("depth", "disparity") else "depth",
    }


@torch.no_grad()
def true_log_depths(
    pipe: DepthFMPipeline, depth: NDArray[np.float32], max_depth: float | None, processing_resolution: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The true depth in the form of the pipeline's `log_depth`: normalised, and after the autoencoder as well.

    The quantiles are those of all known depths up to `max_depth`. The autoencoder must not pay for holes, which no
    model has to reproduce: they are filled from the pixels around them first.

    Args:
        pipe: The pipeline, for its autoencoder.
        depth: H×W, metres, 0 where not known.
        max_depth: Metres; deeper pixels are holes. `None`: no limit.
        processing_resolution: Longer side in pixels at which the autoencoder sees the map, 0 for its own.

    Returns:
        Two maps H×W, float32: normalised in [-1, 1], and what the autoencoder makes of it.
    """
    normalized = normalize_log_depth(torch.from_numpy(depth)[None], DepthNormalization(cap=max_depth))
    filled = fill_holes(normalized.values, normalized.known)
    # As the pipeline does with an image: resized, then padded. It takes [0, 1] and gives [-1, 1].
    processed = process_image(
        ((filled + 1) / 2).expand(1, 3, -1, -1), processing_resolution, "bilinear", pipe.vae_scale_factor
    )
    decoded = pipe.decode_depth(pipe.encode_image(processed.pixels.to(pipe._execution_device)))
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
