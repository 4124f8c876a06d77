"""Normalised log depth: the depth map that the model learns, and its inverse.

y = 2 (log d - log d_low) / (log d_high - log d_low) - 1, where d_low and d_high are quantiles of the frame's known
depths. Two settings have names:

- `depthfm`, the default: 2 % and 98 %, clipped to [-1, 1]. These are Marigold's quantiles. DepthFM's paper gives
  neither its quantiles nor whether values are clipped, and its training code is not public.
- `diff2flow`: 1 % and 99 %, not clipped, pixels beyond 120 m left out. A later repository of the same group,
  github.com/CompVis/diff2flow, trains so: `MAX_FAR_PLANE` and `preprocess_depth` in
  `diff2flow/dataset/depth_preprocessing.py`, read at commit 33239aa. That DepthFM was trained in the same way is a
  guess. Of that code three things are not taken over: it takes the quantiles over all pixels, where those beyond the
  cap count as 120 m and holes are interpolated; it caps Hypersim's distances before they become planar depth; and its
  loss has no mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

SKY_RULES = ("mask", "far")


@dataclass(frozen=True)
class DepthNormalization:
    """How metric depth becomes the depth map that the model learns.

    Every pixel is one of three kinds, and this is what becomes of it:

    - known: a finite positive depth, not beyond `cap`, not sky. Normalised; the quantiles are taken over these only.
    - sky: marked as sky by the data, or deeper than `cap`. As far as the farthest known pixel, and at least y = 1;
      trained on if `sky` is `"far"`.
    - hole: everything else (0, negative or not finite). The same y, never trained on.

    Attributes:
        low: Quantile that becomes -1, in [0, 1).
        high: Quantile that becomes 1, in (`low`, 1].
        cap: Metres; deeper pixels are treated as sky. `None`: no limit.
        sky: `"mask"`: sky is left out of the loss, as holes are. `"far"`: the model learns to put it farthest; no
            geometry is asked for (normals), as there is none.
        clip: Whether y is clipped to [-1, 1]. The formula's inverse then holds between the quantiles only.

    Raises:
        ValueError: If a field is out of its range.
    """

    low: float = 0.02
    high: float = 0.98
    cap: float | None = None
    sky: str = "mask"
    clip: bool = True

    def __post_init__(self) -> None:
        """Checks the fields."""
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"The depth quantiles must satisfy 0 <= low < high <= 1, got {self.low} and {self.high}.")
        if self.cap is not None and not 0.0 < self.cap < math.inf:
            raise ValueError(f"The depth cap must be a positive number of metres or None, got {self.cap}.")
        if self.sky not in SKY_RULES:
            raise ValueError(f"The rule for sky must be one of {SKY_RULES}, got {self.sky!r}.")


NORMALIZATIONS = {
    "depthfm": DepthNormalization(),
    "diff2flow": DepthNormalization(low=0.01, high=0.99, cap=120.0, clip=False),
}


@dataclass(frozen=True)
class NormalizedDepth:
    """A frame's normalised log depth and what is needed to undo it.

    Attributes:
        values: 1×H×W, float32, in [-1, 1] if clipped; the largest value, at least 1, wherever the depth is not known.
        valid: 1×H×W, bool; where the values are trained on: known depth, and sky under the rule `"far"`.
        known: 1×H×W, bool; where there is a depth, and so a geometry. Part of `valid`.
        log_near: log of the low quantile, log metres.
        log_far: log of the high quantile, log metres; equal to `log_near` for a frame of zero range.
    """

    values: torch.Tensor
    valid: torch.Tensor
    known: torch.Tensor
    log_near: float
    log_far: float

    @property
    def has_range(self) -> bool:
        """Whether the known depths differ; if they do not, or there is none, the values are 1 everywhere."""
        return self.log_far > self.log_near


def normalize_log_depth(
    depth: torch.Tensor,
    normalization: DepthNormalization | None = None,
    sky: torch.Tensor | None = None,
) -> NormalizedDepth:
    """Normalises metric depth; for the formula see the module, for sky and holes `DepthNormalization`.

    Args:
        depth: 1×H×W in metres; not known where it is 0, negative or not finite.
        normalization: Quantiles, cap and rule for sky; `None` is `DepthNormalization()`.
        sky: 1×H×W, bool, wins over `depth`; `None` if no pixel is marked as sky.

    Raises:
        ValueError: If `sky` is not of the shape of `depth`, or not bool.
    """
    config = normalization or DepthNormalization()
    positive = torch.isfinite(depth) & (depth > 0)
    if sky is None:
        sky = torch.zeros_like(positive)
    elif sky.shape != depth.shape or sky.dtype != torch.bool:
        raise ValueError(
            f"`sky` must be bool of the depth's shape {tuple(depth.shape)}, got {sky.dtype} of {tuple(sky.shape)}."
        )
    if config.cap is not None:
        sky = sky | (positive & (depth > config.cap))
    known = positive & ~sky
    valid = known | sky if config.sky == "far" else known

    ones = torch.ones_like(depth, dtype=torch.float32)
    if not known.any():
        return NormalizedDepth(ones, valid, known, 0.0, 0.0)
    log_depth = torch.log(torch.where(known, depth, ones))
    # NumPy: torch.quantile refuses more than 2**24 values.
    log_near, log_far = (float(q) for q in np.quantile(log_depth[known].numpy(), (config.low, config.high)))
    if not log_far > log_near:
        return NormalizedDepth(ones, valid, known, log_near, log_near)
    values = 2 * (log_depth - log_near) / (log_far - log_near) - 1
    if config.clip:
        values, farthest = values.clamp(-1, 1), ones
    else:
        farthest = values[known].max().clamp_min(1)
    return NormalizedDepth(torch.where(known, values, farthest), valid, known, log_near, log_far)


def denormalize_log_depth(values: torch.Tensor, log_near: torch.Tensor, log_far: torch.Tensor) -> torch.Tensor:
    """Returns depth in metres: the inverse of `normalize_log_depth`. The bounds broadcast against `values`."""
    return torch.exp(log_near + (values + 1) / 2 * (log_far - log_near))
