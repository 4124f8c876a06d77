"""Interpolation between scattered points that does not smooth across edges of an image and of a depth map.

The values are taken for a Gaussian process (Rasmussen & Williams 2006; in geostatistics, kriging): two pixels are the
more alike, the closer they are in the image, in predicted depth and in colour. The image is covered by overlapping
windows, each of which uses its nearest points only and is blended with its neighbours: the cost grows with the number
of pixels, not with the square of the number of points. The process says how certain each value is, and predicts
each point from all others at no extra cost. So kernels are compared, and points that are wrong are found, on points
that the prediction has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Points that a window uses at most, and how many lie in it on average.
WINDOW_POINTS, POINTS_IN_WINDOW = 64, 24
SMALLEST_STEP = 4  # pixels between the centres of windows
# Kernels are compared in this many windows at most, spread over the image.
COMPARED_WINDOWS = 128
# Elements of the largest temporary tensor.
CHUNK_ELEMENTS = 4_000_000
# The median of the square of a standard normal variable.
MEDIAN_OF_SQUARES = 0.455
REWEIGHTINGS = 3
# Errors of left-out points are compared up to this many times their median: a wrong point must not decide.
COMPARED_MEDIANS = 10.0


@dataclass(frozen=True)
class Kernel:
    """How alike the values of two pixels are expected to be.

    The covariance is m(r) + `trend` · m(distance / `trend_length`), times a variance that is estimated from the
    values. m is the Matérn function of order 3/2, and r² = (distance / `length`)² + (difference of log depth /
    `depth_width`)² + (difference of colour / `colour_width`)².

    Attributes:
        length: Distance in the image, as a share of its diagonal.
        depth_width: Difference of log depth.
        colour_width: Distance of colours in RGB, each channel in [0, 1].
        trend: Share of a smooth part, which does not stop at edges.
        trend_length: As `length`, for that part.
        noise: Variance of the error of a point, as a share of the variance of the values.
        outlier_deviations: A point counts less whose error is beyond this many standard deviations of its prediction
            from the others. Infinite: all points count alike.
    """

    length: float = 0.4
    depth_width: float = 0.6
    colour_width: float = 0.3
    trend: float = 1.0
    trend_length: float = 0.6
    noise: float = 1e-3
    outlier_deviations: float = math.inf


@dataclass(frozen=True)
class Interpolation:
    """Values for all pixels.

    Attributes:
        mean: H×W.
        variance: H×W, of the error of `mean`; larger far from points and behind edges.
        left_out_errors: N, prediction of each point from the others, minus its value; NaN for points that no window
            that they lie in uses.
        noise: N, variance of the error of each point. Large for points that contradict the others.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    left_out_errors: torch.Tensor
    noise: torch.Tensor


class EdgeAwareInterpolator:
    """Interpolates values known at some pixels of an image.

    Args:
        rows: N, the points' rows, int64.
        columns: N, their columns.
        image: 3×H×W in [0, 1], float32.
        log_depth: H×W, predicted log depth, float32.
    """

    def __init__(
        self, rows: torch.Tensor, columns: torch.Tensor, image: torch.Tensor, log_depth: torch.Tensor
    ) -> None:
        self.size = (log_depth.shape[0], log_depth.shape[1])
        self.points = torch.stack([rows, columns], dim=-1)
        height, width = self.size
        count = len(rows)
        step = math.sqrt(height * width * POINTS_IN_WINDOW / count) / 2
        self.step = int(min(max(step, SMALLEST_STEP), max(height, width)))
        # Windows of 2·step pixels around the corners of a grid: each pixel is in four of them.
        centres = [torch.arange(-(-side // self.step) + 1, device=rows.device) * self.step for side in self.size]
        self.centres = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).reshape(-1, 2)
        self.nearest = torch.cat([self._nearest(part) for part in self.centres.split(_chunk(count))])
        self._colours, self._log_depth = image.flatten(1).T, log_depth.flatten()

    def _nearest(self, centres: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(centres - 0.5, self.points.float(), compute_mode="donot_use_mm_for_euclid_dist")
        return distances.topk(min(WINDOW_POINTS, len(self.points)), largest=False).indices

    def choose_kernel(self, values: Sequence[torch.Tensor], kernels: Sequence[Kernel]) -> tuple[int, int]:
        """Returns which values and which kernel predict points best that were left out.

        Args:
            values: Alternatives, N each: the error is compared as it is, so they must be in the same unit.
            kernels: Alternatives.

        Returns:
            The index of the values and that of the kernel with the smallest error.
        """
        windows = torch.arange(len(self.centres), device=self.nearest.device)
        windows = windows[:: -(-len(windows) // COMPARED_WINDOWS)]
        errors = {
            (i, j): self._fit(one, kernel, windows).left_out_errors.abs()
            for i, one in enumerate(values)
            for j, kernel in enumerate(kernels)
        }
        limit = COMPARED_MEDIANS * float(errors[0, 0].nanmedian())
        return min(errors, key=lambda pair: float(errors[pair].clamp_max(limit).nanmean()))

    def interpolate(self, values: torch.Tensor, kernel: Kernel) -> Interpolation:
        """Interpolates.

        Args:
            values: N, float32.
            kernel: How alike pixels are.

        Returns:
            The values of all pixels.
        """
        windows = torch.arange(len(self.centres), device=self.nearest.device)
        fit = self._fit(values, kernel, windows)
        height, width = self.size
        offsets = torch.arange(-self.step, self.step, device=values.device)
        dy, dx = (grid.reshape(-1) for grid in torch.meshgrid(offsets, offsets, indexing="ij"))
        blend = self._blend(torch.stack([dy, dx], dim=-1))
        sums = torch.zeros(3, height * width, device=values.device)
        prior = 1 + kernel.trend
        for part in windows.split(_chunk(WINDOW_POINTS * len(dy))):
            rows, columns = self.centres[part, :1] + dy, self.centres[part, 1:] + dx
            inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            pixels = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
            covariance = self._covariance(kernel, pixels, self._pixels(self.nearest[part]))
            mean = (covariance @ fit.weights[part, :, None])[..., 0]
            explained = torch.linalg.solve_triangular(fit.factors[part], covariance.mT, upper=False).square().sum(1)
            weight = blend * inside
            variance = fit.variance * (prior - explained).clamp_min(0)
            for total, value in zip(sums, (mean * weight, variance * weight, weight), strict=True):
                total.index_add_(0, pixels.reshape(-1), value.reshape(-1))
        mean, variance = (total.reshape(height, width) for total in sums[:2] / sums[2])
        return Interpolation(mean, variance, fit.left_out_errors, fit.variance * fit.noise)

    def _fit(self, values: torch.Tensor, kernel: Kernel, windows: torch.Tensor) -> _Fit:
        """Solves the windows; points that contradict the others get a larger noise."""
        nearest = self.nearest[windows]
        pixels = self._pixels(nearest)
        covariance = self._covariance(kernel, pixels, pixels)
        blend = self._blend(self.points[nearest] - self.centres[windows, None])
        noise = torch.full_like(values, kernel.noise)
        for _ in range(REWEIGHTINGS if math.isfinite(kernel.outlier_deviations) else 1):
            factors = torch.linalg.cholesky(covariance + torch.diag_embed(noise[nearest]))
            weights = torch.cholesky_solve(values[nearest][..., None], factors)[..., 0]
            precision = torch.cholesky_inverse(factors).diagonal(dim1=-2, dim2=-1)
            # The prediction of a point from the others of its window (Rasmussen & Williams 2006, equation 5.12), and
            # the variance of its error if the point were as good as the others.
            expected = 1 / precision - noise[nearest] + kernel.noise
            errors, expected = self._blended(nearest, blend, -weights / precision, expected)
            scores = errors.square() / expected
            variance = _median(scores) / MEDIAN_OF_SQUARES
            excess = (scores / (variance * kernel.outlier_deviations**2)).clamp(1.0, 1e6)
            noise = kernel.noise + ((excess - 1) * expected).nan_to_num(0.0)
        return _Fit(factors, weights, errors, noise, variance)

    def _blended(self, nearest: torch.Tensor, blend: torch.Tensor, *values: torch.Tensor) -> list[torch.Tensor]:
        """Returns the means of what the windows say about points, N each; NaN for points of none."""
        sums = torch.zeros(len(values) + 1, len(self.points), device=blend.device)
        for total, value in zip(sums, (blend, *(one * blend for one in values)), strict=True):
            total.index_add_(0, nearest.reshape(-1), value.reshape(-1))
        return list(sums[1:] / sums[0])

    def _blend(self, offsets: torch.Tensor) -> torch.Tensor:
        """Returns the weights of a window at ...×2 offsets from its centre: 1 there, falling to 0 at its border."""
        return (1 - (offsets + 0.5).abs() / self.step).clamp_min(0).prod(dim=-1)

    def _pixels(self, points: torch.Tensor) -> torch.Tensor:
        return self.points[points, 0] * self.size[1] + self.points[points, 1]

    def _covariance(self, kernel: Kernel, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Returns the covariances T×A×B between pixels T×A and T×B, without the variance."""
        diagonal = math.hypot(*self.size)

        def coordinates(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            place = torch.stack([pixels // self.size[1], pixels % self.size[1]], dim=-1) / diagonal
            depth = self._log_depth[pixels][..., None] / kernel.depth_width
            colours = self._colours[pixels] / kernel.colour_width
            return torch.cat([place / kernel.length, depth, colours], dim=-1), place / kernel.trend_length

        pairs = zip(coordinates(first), coordinates(second), strict=True)
        # The fast way by matrix products rounds small distances to zero.
        joint, far = (torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") for a, b in pairs)
        return _matern(joint) + kernel.trend * _matern(far)


@dataclass(frozen=True)
class _Fit:
    """The solved windows: Cholesky factors T×M×M, weights T×M; and of the points, errors and noise, N each."""

    factors: torch.Tensor
    weights: torch.Tensor
    left_out_errors: torch.Tensor
    noise: torch.Tensor
    variance: torch.Tensor


def _matern(distance: torch.Tensor) -> torch.Tensor:
    scaled = math.sqrt(3) * distance
    return (1 + scaled) * torch.exp(-scaled)


def _median(values: torch.Tensor) -> torch.Tensor:
    known = values[~values.isnan()]
    return known.median().clamp_min(1e-12) if len(known) else torch.ones((), device=values.device)


def _chunk(elements: int) -> int:
    return max(1, CHUNK_ELEMENTS // elements)
