"""The log-affine pair (a, b) that brings the network's log depth y to metres: log d = a·y + b."""

from __future__ import annotations

import torch

from ....line_fitting import fit_robust_line
from ....metric import TOLERANCE

# What is assumed of a before a point is seen: y runs from -1 to 1, so that a scene is exp(2a) = 4 times as deep as
# near. `DEVIATION` is that of a, and `MODEL_ERROR` that of the network's log depth in metres: together they are as
# strong as points that spread y by 0.4. They decide only where the points do not.
EXPECTED, DEVIATION, MODEL_ERROR = 0.7, 0.4, 0.15
SMALLEST = 0.05


def fit_log_affine(log_depth: torch.Tensor, known: torch.Tensor) -> tuple[float, float]:
    """Fits a and b to points, though up to nearly half of them may be wrong.

    Args:
        log_depth: N ≥ 1, the network's log depth y at the points.
        known: N, log metres.

    Returns:
        a, at least `SMALLEST`, and b. Points that all have the same y leave a at `EXPECTED`.
    """
    y, target = (values.double().cpu().numpy() for values in (log_depth, known))
    if len(y) > 1:
        inliers = fit_robust_line(y, target, TOLERANCE).inliers
        y, target = y[inliers], target[inliers]
    centred = y - y.mean()
    prior = (MODEL_ERROR / DEVIATION) ** 2
    spread = (centred * centred).sum()
    a = max(((centred * target).sum() + prior * EXPECTED) / (spread + prior), SMALLEST)
    return float(a), float(target.mean() - a * y.mean())
