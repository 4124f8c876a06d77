"""Losses between decoded depth maps and true ones, per pixel.

Maps are B×1×H×W. `values` is a decoded estimate, normalised log depth; `target` is the true one, and `valid` (bool)
says where it counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...depth_normalization import denormalize_log_depth
from ...geometry import depth_to_normals

# Decoded values are clamped to ± this before their exponential is taken. True values lie in [-1, 1] if they are
# clipped (see `decoded_limit` for others); an untrained network's estimates can lie far outside and would overflow.
# Clamped values get no gradient from this loss, only from the others.
MAX_DECODED = 2.0
GRADIENT_SCALES = 4
MATCHING_WINDOW = 5
MATCHING_STRIDE = 3


def l1_loss(values: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Returns the mean of |`values` - `target`| over valid pixels: a scalar; 0 if no pixel is valid."""
    return torch.where(valid, (values - target).abs(), 0).sum() / valid.sum().clamp_min(1)


def scale_shift_invariant_loss(values: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Returns the L1 after each map's best scale and shift, as E2E-FT trains with (arXiv 2409.11355, section 4.2).

    Returns:
        Scalar; 0 if no pixel is valid.
    """
    return l1_loss(align_by_least_squares(values, target, valid), target, valid)


def decoded_limit(target: torch.Tensor) -> torch.Tensor:
    """Returns where each map's decoded values are clamped: `MAX_DECODED`, or more for true values outside [-1, 1].

    Args:
        target: B×1×H×W, the true normalised log depth; finite.

    Returns:
        B×1×1×1.
    """
    return target.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1) + (MAX_DECODED - 1)


def relative_depth_loss(
    values: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor, limit: float | torch.Tensor = MAX_DECODED
) -> torch.Tensor:
    """Returns the mean relative error of depth: |a exp(values) + b - depth| / depth, a and b by least squares.

    That is AbsRel as evaluation aligned in depth measures it. The exponential of *normalised* log depth is no linear
    function of depth: this loss asks the map for the log range of its scene, which the others do not see.

    Args:
        values: B×1×H×W; clamped to ±`limit`.
        depth: B×1×H×W, metres; positive where valid.
        valid: B×1×H×W, bool.
        limit: A number, or B×1×1×1, see `decoded_limit`.

    Returns:
        Scalar; 0 if no pixel is valid.
    """
    count = valid.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
    mean = torch.where(valid, depth, 0).sum(dim=(1, 2, 3), keepdim=True) / count
    # In units of the frame's mean depth, for the precision of the sums.
    truth = torch.where(valid, depth, 1) / torch.where(mean > 0, mean, 1)
    aligned = align_by_least_squares(_clamp(values, limit).exp(), truth, valid)
    return torch.where(valid, (aligned - truth).abs() / truth, 0).sum() / valid.sum().clamp_min(1)


def align_by_least_squares(values: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Returns a·`values` + b, with each map's a and b by least squares over its valid pixels; a constant map gives b.

    The gradient flows through a and b.
    """
    dims = (1, 2, 3)
    weight = valid.float()
    count = weight.sum(dim=dims, keepdim=True).clamp_min(1)

    def mean(maps: torch.Tensor) -> torch.Tensor:
        return (weight * maps).sum(dim=dims, keepdim=True) / count

    # What is not valid may be anything: it must not reach a sum.
    known, true = torch.where(valid, values, 0), torch.where(valid, target, 0)
    centre, true_centre = mean(known), mean(true)
    variance = mean((known - centre).square())
    # The small number keeps the gradient of a nearly constant map finite.
    scale = mean((known - centre) * (true - true_centre)) / (variance + 1e-6)
    return scale * (values - centre) + true_centre


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


def has_intrinsics(intrinsics: torch.Tensor) -> torch.Tensor:
    """Returns which samples have a known camera: B×3×3 to B, bool. Unknown intrinsics are NaN."""
    return torch.isfinite(intrinsics).flatten(1).all(dim=1)


def normals_loss(
    values: torch.Tensor,
    depth: torch.Tensor,
    known: torch.Tensor,
    bounds: torch.Tensor,
    intrinsics: torch.Tensor,
    limit: float | torch.Tensor = MAX_DECODED,
) -> torch.Tensor:
    """Returns the mean cosine distance between the surface normals of a decoded estimate and the true ones.

    A pixel counts if its 3×3 neighbourhood (at the image's border, the part inside the image) is known, because a
    normal depends on the neighbours' depth. Samples with an unknown camera do not count.

    Args:
        values: B×1×H×W, decoded normalised log depth; differentiable within ±`limit`.
        depth: B×1×H×W, true depth in metres; anything where not known.
        known: B×1×H×W, bool.
        bounds: B×2, log of the near and the far quantile that the depth map was normalised with.
        intrinsics: B×3×3, pixels; NaN where unknown.
        limit: A number, or B×1×1×1, see `decoded_limit`.

    Returns:
        Scalar in [0, 2]; 0 if no pixel counts.
    """
    camera = has_intrinsics(intrinsics)[:, None, None]
    # A NaN would reach the sum even with weight 0.
    intrinsics = torch.where(camera, intrinsics, torch.eye(3, device=intrinsics.device))
    known = known & camera[:, None]
    log_near, log_far = (bounds[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    estimate = denormalize_log_depth(_clamp(values, limit), log_near, log_far)
    predicted = depth_to_normals(estimate, intrinsics)
    true = depth_to_normals(torch.where(known, depth, torch.ones_like(depth)), intrinsics)
    inner = 1 - F.max_pool2d(1 - known.float(), kernel_size=3, stride=1, padding=1)
    distance = 1 - (predicted * true).sum(dim=1, keepdim=True)
    return (inner * distance).sum() / inner.sum().clamp_min(1.0)


def gradient_matching_loss(values: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Returns the multi-scale gradient matching loss of MiDaS (arXiv 1907.01341): edges as in the truth.

    With the residual R = `values` - `target`: the mean magnitude of the differences between horizontal neighbours of
    R, plus that between vertical ones, over pairs of valid pixels, summed over `GRADIENT_SCALES` scales. Each scale
    keeps every second pixel of the one before, without averaging, which would mix depths across edges.

    Args:
        values: B×1×H×W, decoded normalised log depth.
        target: B×1×H×W, the true one.
        valid: B×1×H×W, bool.

    Returns:
        Scalar; 0 if no pair is valid.
    """
    residual = torch.where(valid, values - target, torch.zeros_like(target))
    total = residual.new_zeros(())
    for scale in range(GRADIENT_SCALES):
        step = 2**scale
        r, v = residual[..., ::step, ::step], valid[..., ::step, ::step]
        pairs_x, pairs_y = v[..., :, 1:] & v[..., :, :-1], v[..., 1:, :] & v[..., :-1, :]
        for difference, pairs in ((r.diff(dim=-1), pairs_x), (r.diff(dim=-2), pairs_y)):
            total = total + (pairs * difference.abs()).sum() / pairs.sum().clamp_min(1)
    return total


def _clamp(values: torch.Tensor, limit: float | torch.Tensor) -> torch.Tensor:
    bound = torch.as_tensor(limit, dtype=values.dtype, device=values.device)
    return values.clamp(-bound, bound)
