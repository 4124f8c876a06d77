"""Normalised log depth: the depth map that the model learns, and its inverse.

y = 2 (log d - log d_2) / (log d_98 - log d_2) - 1, clipped to [-1, 1], where d_2 and d_98 are quantiles of the
frame's known depths (2 % and 98 %: Marigold's choice; DepthFM's are not published).
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
    - sky: marked as sky by the data, or deeper than `cap`. y = 1; trained on if `sky` is `"far"`.
    - hole: everything else (0, negative or not finite). y = 1, never trained on.

    Attributes:
        low: Quantile that becomes -1, in [0, 1).
        high: Quantile that becomes 1, in (`low`, 1].
        cap: Metres; deeper pixels are treated as sky. `None`: no limit.
        sky: `"mask"`: sky is left out of the loss, as holes are. `"far"`: the model learns y = 1 there; no geometry is
            asked for (normals), as there is none.

    Raises:
        ValueError: If a field is out of its range.
    """

    low: float = 0.02
    high: float = 0.98
    cap: float | None = None
    sky: str = "mask"

    def __post_init__(self) -> None:
        """Checks the fields."""
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"The depth quantiles must satisfy 0 <= low < high <= 1, got {self.low} and {self.high}.")
        if self.cap is not None and not 0.0 < self.cap < math.inf:
            raise ValueError(f"The depth cap must be a positive number of metres or None, got {self.cap}.")
        if self.sky not in SKY_RULES:
            raise ValueError(f"The rule for sky must be one of {SKY_RULES}, got {self.sky!r}.")


@dataclass(frozen=True)
class NormalizedDepth:
    """A frame's normalised log depth and what is needed to undo it.

    Attributes:
        values: 1×H×W, float32 in [-1, 1]; 1 (far) wherever the depth is not known.
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
    values = (2 * (log_depth - log_near) / (log_far - log_near) - 1).clamp(-1, 1)
    return NormalizedDepth(torch.where(known, values, ones), valid, known, log_near, log_far)


def denormalize_log_depth(values: torch.Tensor, log_near: torch.Tensor, log_far: torch.Tensor) -> torch.Tensor:
    """Returns depth in metres: the inverse of `normalize_log_depth`. The bounds broadcast against `values`."""
    return torch.exp(log_near + (values + 1) / 2 * (log_far - log_near))
