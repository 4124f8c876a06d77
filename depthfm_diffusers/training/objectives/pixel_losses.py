"""Losses between decoded depth maps and true ones, per pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F

MATCHING_WINDOW = 5
MATCHING_STRIDE = 3


def windowed_matching_loss(values: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Returns the mean distance of matched values in small windows: an edge may be off by a pixel, not be blurred.

    In every window of `MATCHING_WINDOW` pixels a side, the values are matched with the true ones such that the sum of
    |value - true value| is smallest, wherever in the window they are. For scalars the best match is that of the sorted
    values (Peyré and Cuturi, arXiv 1803.00567, remark 2.28); Marigold V2 approximates it by Sinkhorn iterations.
    Windows overlap, so that an edge between two of them is within a third; those with an invalid pixel do not count.

    Args:
        values: B×1×H×W, decoded normalised log depth.
        target: B×1×H×W, the true one.
        valid: B×1×H×W, bool.

    Returns:
        Scalar; 0 if no window is valid.
    """

    def windows(maps: torch.Tensor) -> torch.Tensor:
        return F.unfold(maps, MATCHING_WINDOW, stride=MATCHING_STRIDE)  # B×25×N

    whole = windows(valid.float()).amin(dim=1) > 0
    distance = (windows(values).sort(dim=1).values - windows(target).sort(dim=1).values).abs().mean(dim=1)
    return torch.where(whole, distance, 0).sum() / whole.sum().clamp_min(1)
