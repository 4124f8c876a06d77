"""The last step of a completion: what is left at the points is interpolated between them, up to the edges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ....edge_aware_interpolation import EdgeAwareInterpolator, Kernel
from ....image_processing import processing_size, resize
from .known_depth import KnownDepth

# Longer side at which the correction is computed at most.
MAX_SIDE = 1024
# How many points are wrong is found first, then how far the others reach: each by the error at points left out.
OUTLIER_DEVIATIONS = (math.inf, 6.0, 3.0)
KERNELS = (Kernel(), Kernel(length=0.2, depth_width=0.3), Kernel(length=0.8, depth_width=1.2, colour_width=0.6))
# A point is counted as wrong if it got more than this many times the noise of the others.
WRONG_FROM = 10.0


@dataclass(frozen=True)
class Correction:
    """Corrected log depth of one image.

    Attributes:
        log_depth: H×W, log metres.
        deviation: H×W, standard deviation of its error, in log metres.
        left_out_error: Mean absolute error, in log metres, of points predicted from the others: of the chosen kernel.
        wrong_points: Number of points that contradict the others.
        uses_prediction: Whether the values are added to the prediction; otherwise the prediction only tells where the
            edges are, because its values do not help.
    """

    log_depth: torch.Tensor
    deviation: torch.Tensor
    left_out_error: float
    wrong_points: int
    uses_prediction: bool


def correct(
    prediction: torch.Tensor, spread: torch.Tensor | None, image: torch.Tensor, known: KnownDepth
) -> Correction:
    """Corrects a prediction by the points.

    Args:
        prediction: H×W, log metres: the fitted prediction.
        spread: H×W, standard deviation of the members of an ensemble in log metres; `None` without one.
        image: 3×H×W in [0, 1].
        known: The points, H×W.

    Returns:
        The corrected log depth.
    """
    full = (prediction.shape[0], prediction.shape[1])
    size = processing_size(*full, min(max(full), MAX_SIDE))
    small = resize(prediction[None, None], size, "bilinear")[0, 0]
    colours = resize(image[None], size, "bilinear")[0]
    points = known.at_size(size).thinned()
    rows, columns = points.known.nonzero().T
    target = points.log_depth[points.known]
    interpolator = EdgeAwareInterpolator(rows, columns, colours, small)

    values = [target - small[points.known], target - target.median()]
    strictness = [replace(KERNELS[0], outlier_deviations=one) for one in OUTLIER_DEVIATIONS]
    strictest = strictness[interpolator.choose_kernel(values[:1], strictness)[1]].outlier_deviations
    kernels = [replace(one, outlier_deviations=strictest) for one in KERNELS]
    chosen, kernel = interpolator.choose_kernel(values, kernels)
    result = interpolator.interpolate(values[chosen], kernels[kernel])
    base = prediction if chosen == 0 else target.median().expand(full)
    mean = base + resize(result.mean[None, None], full, "bilinear")[0, 0]
    variance = resize(result.variance[None, None], full, "bilinear")[0, 0]

    # Points count in their own pixels too, where the interpolation does not pass through them: thinned ones, and
    # several in one pixel. One that contradicts its surroundings counts less.
    noise = result.noise.min()
    error = known.log_depth - mean
    excess = (error.square() / (variance + noise) / 9).clamp_min(1)
    gain = torch.where(known.known, variance / (variance + noise * excess.square()), 0.0)
    if spread is not None:
        # As sure as the points nearby make it; where there are none, as the members differ.
        prior = variance.max().clamp_min(1e-12)
        variance = variance + (variance / prior) * spread.square()
    errors = result.left_out_errors
    return Correction(
        log_depth=mean + gain * error,
        deviation=((1 - gain) * variance).clamp_min(0).sqrt(),
        left_out_error=float(errors.nan_to_num(0.0).abs().mean()),
        wrong_points=int((result.noise > WRONG_FROM * noise).sum()),
        uses_prediction=chosen == 0,
    )


@dataclass(frozen=True)
class Completed:
    """Completed depth of one image.

    Attributes:
        depth: H×W, metres, float32.
        uncertainty: H×W, metres, float32.
        fit: Of `CompletionFit`: `left_out_error`, `wrong_points` and `uses_prediction`.
    """

    depth: torch.Tensor
    uncertainty: torch.Tensor
    fit: tuple[float | None, int | None, bool]


def complete(
    members: torch.Tensor, image: torch.Tensor, known: KnownDepth, correct_residual: bool, keep_known: bool
) -> Completed:
    """Makes depth of the members' fitted predictions.

    Args:
        members: E×H×W, log metres.
        image: 3×H×W in [0, 1].
        known: What is known.
        correct_residual: Whether what is left at the points is interpolated.
        keep_known: Whether known values are returned exactly.

    Returns:
        The depth.
    """
    log_depth, spread = members.mean(dim=0), members.std(dim=0) if len(members) > 1 else None
    fit: tuple[float | None, int | None, bool] = (None, None, True)
    if correct_residual:
        corrected = correct(log_depth, spread, image, known)
        log_depth, deviation = corrected.log_depth, corrected.deviation
        fit = (corrected.left_out_error, corrected.wrong_points, corrected.uses_prediction)
    else:
        # The same for all pixels but for the members.
        deviation = (log_depth - known.log_depth)[known.known].square().mean().sqrt().expand_as(log_depth)
        deviation = deviation if spread is None else torch.hypot(deviation, spread)
    depth = torch.exp(log_depth)
    uncertainty = depth * deviation
    if keep_known:
        depth = torch.where(known.known, known.metres, depth)
        uncertainty = torch.where(known.known, 0.0, uncertainty)
    return Completed(depth, uncertainty, fit)
