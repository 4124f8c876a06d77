"""From a predicted log depth map to metres, by what is known of the scene.

The network's log depth y is known up to two numbers: the true log depth is a·y + b, with a > 0 and b unknown for each
image. Two points of known depth give both; more points, or a depth map of a sensor, give them by a robust fit:

```python
output = pipe(image)
fit = fit_points(output.log_depth, [(120, 300, 1.5), (400, 90, 4.2), (250, 210, 2.0)])  # x, y, metres
metres = fit.apply(output.log_depth)
```

All depths are planar: along the optical axis, not along the ray to the point.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .line_fitting import fit_robust_line

logger = logging.getLogger(__name__)

Map = TypeVar("Map", np.ndarray, torch.Tensor)

METRIC_SPACES = ("log", "depth", "disparity")
# Metric depth is clipped from below at MIN_DEPTH, m, and disparity at MIN_DISPARITY, 1/m, before it is inverted:
# Marigold's evaluation does so.
MIN_DEPTH = 1e-3
MIN_DISPARITY = 1e-3
# No point is taken for wrong that deviates by less than this share of its depth: predictions do, and of few points
# three may lie on one line by chance.
TOLERANCE = 0.25
# Log depths that differ by less, of about [-1, 1], are one depth: their difference is rounding.
MIN_DIFFERENCE = 1e-5
# The normalised range of log depth, from -1 to 1, is that between these quantiles of the true one.
RANGE_QUANTILES = (0.02, 0.98)
MILLIMETRES_FROM = 300.0


@dataclass(frozen=True)
class MetricFit:
    """What brings the log depth of one image to metres, and how well it fits.

    | `space` | metric depth of log depth y |
    |---|---|
    | `"log"` | exp(a·y + b) |
    | `"depth"` | a·exp(y) + b |
    | `"disparity"` | 1 / (a·exp(-y) + b) |

    Attributes:
        a: Scale in the space, positive.
        b: Shift in the space.
        space: One of `METRIC_SPACES`.
        points: Number of known points.
        inliers: Number of points that the fit was made with; the others are taken for wrong.
        median_relative_error: Median over all points of |fitted - known| / known. Two points or fewer are always
            fitted exactly, so it says nothing then.
        range_covered: Share, in [0, 1], of the map's range of log depth (2 % to 98 % quantile) that lies between the
            smallest and the largest log depth of the inliers. The depth of the rest is extrapolated.
    """

    a: float
    b: float
    space: str
    points: int
    inliers: int
    median_relative_error: float
    range_covered: float

    def apply(self, log_depth: Map) -> Map:
        """Returns the metric depth of a log depth map.

        Args:
            log_depth: Array or tensor of any shape.

        Returns:
            Metres, float32, of the same shape and on the same device. At least 1 mm; in `"disparity"` at most 1 km.
        """
        if isinstance(log_depth, torch.Tensor):
            return torch.from_numpy(self.apply(log_depth.detach().cpu().float().numpy())).to(log_depth.device)
        values = self.a * _predicted(log_depth, self.space) + self.b
        return np.maximum(depth_from_space(values, self.space), MIN_DEPTH).astype(np.float32)


def fit_points(
    log_depth: np.ndarray | torch.Tensor,
    points: ArrayLike | Sequence[Sequence[float]],
    space: str = "log",
    range_ratio: float | None = None,
) -> MetricFit:
    """Fits metric depth to points of known depth.

    Two points give a and b exactly. With four or more, points that contradict the others are found and left out.

    Args:
        log_depth: Log depth of one image as `DepthFMPipeline` returns it: H×W, or with axes of length 1 for the image
            and the channel (1×H×W×1 arrays, 1×1×H×W tensors).
        points: N×3: x and y in pixels of this map, (0, 0) being the centre of the top left pixel, and the depth in
            metres along the optical axis.
        space: Where the map is affine in the truth, one of `METRIC_SPACES`. The model predicts log depth; the others
            are for maps of models that do not.
        range_ratio: Only for a single point, which gives b alone: how many times as far the farthest things in the
            image are as the nearest (98 % and 2 % quantile). It is an assumption, and a follows from it.

    Raises:
        ValueError: If a point is outside the map, its depth is not positive and finite, there are too few points, all
            have the same predicted depth, or the prediction is nearer where the points are farther.
    """
    _check_space(space)
    y = _one_map(log_depth)
    known = np.asarray(points, dtype=np.float64)
    if known.ndim != 2 or known.shape[1] != 3 or len(known) == 0:
        raise ValueError(f"`points` must be N×3 (x, y, metres) with at least one point, got shape {known.shape}.")
    columns, rows = _pixels(known)
    height, width = y.shape
    outside = ~((columns >= 0) & (columns < width) & (rows >= 0) & (rows < height))
    for name, wrong in (
        (f"is outside the map of {width}×{height} pixels", outside),
        ("has a depth that is not positive and finite", ~(np.isfinite(known[:, 2]) & (known[:, 2] > 0))),
    ):
        if wrong.any():
            x, row, metres = known[wrong][0]
            raise ValueError(f"The point x={x:g}, y={row:g} with {metres:g} m {name}: correct it or leave it out.")
    values = values_at(y, known).astype(np.float64)
    if len(known) == 1:
        return _fit_one_point(y, values[0], known[0, 2], space, range_ratio)
    if range_ratio is not None:
        raise ValueError(f"`range_ratio` is for a single point, got {len(known)} points: leave it out.")
    return _fit(y, values, known[:, 2], space)


def fit_depth_map(
    log_depth: np.ndarray | torch.Tensor,
    depth: np.ndarray | torch.Tensor,
    valid: np.ndarray | torch.Tensor | None = None,
    space: str = "log",
) -> MetricFit:
    """Fits metric depth to a depth map, complete or sparse, of a sensor, a renderer or `plane_depth`.

    Args:
        log_depth: As for `fit_points`.
        depth: Metres, floating point, of the same height and width; 0, NaN and infinite values are unknown.
        valid: Boolean, which pixels to use besides; `None`: all that are known.
        space: As for `fit_points`.

    Raises:
        ValueError: If a map has another shape or type, fewer than two pixels are known, a depth is negative, or as
            `fit_points`.
    """
    _check_space(space)
    y, metres = _one_map(log_depth), _one_map(depth, "depth")
    if metres.shape != y.shape:
        raise ValueError(f"`depth` must have the size of `log_depth`, {y.shape}, got {metres.shape}: resize one.")
    known = np.isfinite(metres) & (metres != 0)
    if valid is not None:
        mask = _one_map(valid, "valid")
        if mask.shape != y.shape or mask.dtype != np.bool_:
            raise ValueError(f"`valid` must be boolean of size {y.shape}, got {mask.dtype} of size {mask.shape}.")
        known &= mask
    if (metres[known] < 0).any():
        raise ValueError("`depth` has negative values: set unknown pixels to 0 or NaN.")
    if known.sum() < 2:
        raise ValueError(f"`depth` has {known.sum()} known pixel(s), at least 2 are needed.")
    return _fit(y, y[known], metres[known], space)


def plane_depth(
    size: tuple[int, int],
    intrinsics: np.ndarray | torch.Tensor,
    distance: float,
    normal: Sequence[float] = (0.0, 1.0, 0.0),
) -> NDArray[np.float32]:
    """Returns the depth at which the rays of a camera meet a known plane, for `fit_depth_map`.

    For the floor, `distance` is the height of the camera. `normal` points down: (0, 1, 0) for a level camera,
    (0, cos p, sin p) for one that looks down by an angle p. Say by `valid` of `fit_depth_map` which pixels show it.

    Args:
        size: Height and width of the map in pixels.
        intrinsics: 3×3, in pixels of this map, such as `geometry.intrinsics_from_fov` returns.
        distance: From the camera to the plane, metres.
        normal: Direction from the camera to the nearest point of the plane, in OpenCV axes (x right, y down, z
            forward), of any length.

    Returns:
        H×W, metres; 0 where a ray does not meet the plane in front of the camera.

    Raises:
        ValueError: If the distance or a shape is not acceptable, or the normal is zero.
    """
    k, direction = np.asarray(intrinsics, dtype=np.float64), np.asarray(normal, dtype=np.float64)
    if k.shape != (3, 3) or direction.shape != (3,):
        raise ValueError(f"`intrinsics` must be 3×3 and `normal` have 3 values, got {k.shape} and {direction.shape}.")
    length = float(np.linalg.norm(direction))
    if not (math.isfinite(distance) and distance > 0 and math.isfinite(length) and length > 0):
        raise ValueError(f"`distance` must be positive metres and `normal` not zero, got {distance} and {normal}.")
    v, u = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(size)], axis=-1)
    along = (rays * direction).sum(-1) / length
    return np.divide(distance, along, out=np.zeros(size), where=along > 0).astype(np.float32)


def values_at(values: NDArray[np.floating], points: ArrayLike | Sequence[Sequence[float]]) -> NDArray[np.floating]:
    """Returns the values of a map H×W at points inside it, N; points are as for `fit_points`."""
    columns, rows = _pixels(np.asarray(points, dtype=np.float64)).astype(int)
    return values[rows, columns]


def depth_to_space(depth: NDArray[np.float64], space: str) -> NDArray[np.float64]:
    """Returns metric depth in one of `METRIC_SPACES`: log d, d or 1/d."""
    if space == "depth":
        return depth
    return np.log(depth) if space == "log" else 1 / depth


def depth_from_space(values: NDArray[np.float64], space: str) -> NDArray[np.float64]:
    """Undoes `depth_to_space`; disparity is clipped from below at `MIN_DISPARITY`."""
    if space == "log":
        with np.errstate(over="ignore"):  # an infinite depth outside a mask is clipped or not used
            return np.exp(values)
    return 1 / np.maximum(values, MIN_DISPARITY) if space == "disparity" else values


def _pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns columns and rows of the pixels that points are in, 2×N; -1 where they are not numbers."""
    return np.floor(np.nan_to_num(points[:, :2], nan=-1.0) + 0.5).T


def _fit(y: NDArray[np.float64], values: NDArray[np.float64], metres: NDArray[np.float64], space: str) -> MetricFit:
    """Fits known depths to predicted log depths of the map `y`, at least two of each."""
    if not np.isfinite(values).all():
        raise ValueError("`log_depth` has NaN or infinite values at the known points.")
    if np.ptp(values) < MIN_DIFFERENCE:
        raise ValueError(
            f"The predicted depth is the same at all {len(values)} known points: add one that is nearer or farther."
        )
    if metres.min() > MILLIMETRES_FROM:
        logger.warning(
            f"All known depths are more than {MILLIMETRES_FROM:g} m ({metres.min():g} to {metres.max():g}). If they "
            "are millimetres, multiply them by 0.001."
        )
    target = depth_to_space(metres, space)
    tolerance = TOLERANCE * (1.0 if space == "log" else float(np.median(target)))
    line = fit_robust_line(_predicted(values, space), target, tolerance)
    if not line.scale > 0:
        raise ValueError(
            "The predicted depth does not grow with the known depth: check the positions and depths of the "
            f"{len(values)} known points. If they are right, the prediction is wrong there."
        )
    fitted = np.maximum(depth_from_space(line.scale * _predicted(values, space) + line.shift, space), MIN_DEPTH)
    return MetricFit(
        a=line.scale,
        b=line.shift,
        space=space,
        points=len(values),
        inliers=int(line.inliers.sum()),
        median_relative_error=float(np.median(np.abs(fitted - metres) / metres)),
        range_covered=_range_covered(y, values[line.inliers]),
    )


def _fit_one_point(
    y: NDArray[np.float64], value: float, metres: float, space: str, range_ratio: float | None
) -> MetricFit:
    """Fits the shift in log depth, given the ratio of the farthest to the nearest depth."""
    if range_ratio is None:
        raise ValueError(
            "One point gives the scale of the depth, but not its range: give a second point at another depth, or "
            "`range_ratio`, how many times as far the farthest things are as the nearest."
        )
    if space != "log":
        raise ValueError(f"`range_ratio` needs the space 'log', got {space!r}.")
    if not (math.isfinite(range_ratio) and range_ratio > 1):
        raise ValueError(f"`range_ratio` must be more than 1, got {range_ratio}.")
    near, far = np.quantile(y[np.isfinite(y)], RANGE_QUANTILES)
    if not (math.isfinite(value) and far - near >= MIN_DIFFERENCE):
        raise ValueError("`log_depth` is constant, or not finite at the known point: there is no depth to scale.")
    a = math.log(range_ratio) / (far - near)
    return MetricFit(float(a), float(math.log(metres) - a * value), space, 1, 1, 0.0, 0.0)


def _range_covered(y: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    near, far = np.quantile(y[np.isfinite(y)], RANGE_QUANTILES)
    covered = min(values.max(), far) - max(values.min(), near)
    return float(np.clip(covered / (far - near), 0, 1)) if far > near else 1.0


def _predicted(log_depth: NDArray[np.floating], space: str) -> NDArray[np.float64]:
    """Returns what is affine in the truth in a space: y, exp(y) or exp(-y)."""
    y = np.asarray(log_depth, dtype=np.float64)
    if space == "log":
        return y
    return np.exp(y if space == "depth" else -y)


def _one_map(values: Any, name: str = "log_depth") -> NDArray[Any]:
    """Returns the one map H×W in an array or tensor as pipelines return them; numbers as float64."""
    shape = tuple(values.shape)
    if isinstance(values, torch.Tensor):
        array = (values.detach().double() if values.is_floating_point() else values).cpu().numpy()
        axes = (1, 1) if len(shape) == 4 else (1,) if len(shape) == 3 else ()
        fits = shape[: len(axes)] == axes
    else:
        array = values
        fits = shape[-1:] == (1,) if len(shape) == 3 else len(shape) != 4 or (shape[0], shape[-1]) == (1, 1)
    if len(shape) not in (2, 3, 4) or not fits or 0 in shape:
        raise ValueError(
            f"`{name}` must be one map: H×W, an array 1×H×W×1 or a tensor 1×1×H×W, got shape {shape}. Of several "
            "images, take one after the other."
        )
    height, width = shape[-2:] if isinstance(values, torch.Tensor) or len(shape) == 2 else shape[-3:-1]
    array = array.reshape(height, width)
    if array.dtype == np.bool_:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"`{name}` must hold floats, got {array.dtype}; integers are usually millimetres, which times 0.001 are "
            "metres."
        )
    return array.astype(np.float64)


def _check_space(space: str) -> None:
    if space not in METRIC_SPACES:
        raise ValueError(f"`space` must be one of {METRIC_SPACES}, got {space!r}.")
