"""From a depth map in metres to points and triangles: what is kept of it, and where a surface is cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Along a row, a column and both diagonals: rows and columns from a pixel to its neighbour.
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True)
class SurfaceSettings:
    """Which pixels become points, and which of their neighbours are joined to triangles.

    Inverse depth is linear along a row or column of a plane, however steep. A difference in inverse depth that the
    surfaces on neither side continue is therefore a jump, and a steep floor is none.

    Attributes:
        tolerance: Difference in inverse depth, relative to its value, from which it is a jump.
        edge_width: Width of the blurred edges of predicted maps, as a share of the longer side. A pixel is removed if
            it lies between two surfaces that are this far apart at most, and further than `tolerance` from both. 0
            removes none, for sharp depth maps.
        max_angle: Degrees between a triangle's normal and the ray to the camera; steeper triangles are left out.
        max_depth: Metres; points farther away are left out, as sky. `None`: no limit.
        max_points: Most pixels that are used. Of a larger map, every second (third, ...) row and column is.

    Raises:
        ValueError: If a value is out of its range.
    """

    tolerance: float = 0.04
    edge_width: float = 0.03
    max_angle: float = 87.0
    max_depth: float | None = None
    max_points: int = 1_000_000

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"`tolerance` must be a positive number, got {self.tolerance}.")
        if not 0 <= self.edge_width <= 1:
            raise ValueError(f"`edge_width` must be in [0, 1], a share of the longer side, got {self.edge_width}.")
        if not 0 < self.max_angle <= 90:
            raise ValueError(f"`max_angle` must be in (0, 90] degrees, got {self.max_angle}.")
        if self.max_depth is not None and not self.max_depth > 0:
            raise ValueError(f"`max_depth` must be a positive number of metres, got {self.max_depth}.")
        if self.max_points < 1:
            raise ValueError(f"`max_points` must be at least 1, got {self.max_points}.")


@dataclass(frozen=True)
class Surface:
    """Points that a depth map shows, and triangles between them.

    Attributes:
        points: N×3, float32, metres, OpenCV camera axes: x right, y down, z forward.
        pixels: N×2, int; row and column of each point in the map.
        faces: M×3, int; the points of each triangle, counter-clockwise as the camera sees them.
        shape: Height and width of the map.
    """

    points: NDArray[np.float32]
    pixels: NDArray[np.int64]
    faces: NDArray[np.int64]
    shape: tuple[int, int]

    def without_lone_points(self) -> Surface:
        """Returns the surface without the points that belong to no triangle."""
        used = np.unique(self.faces)
        index = np.zeros(len(self.points), dtype=np.int64)
        index[used] = np.arange(len(used))
        return Surface(self.points[used], self.pixels[used], index[self.faces], self.shape)


def depth_surface(
    depth: np.ndarray,
    intrinsics: np.ndarray,
    mask: np.ndarray | None = None,
    settings: SurfaceSettings = SurfaceSettings(),
) -> Surface:
    """Makes points and triangles of a depth map.

    Args:
        depth: H×W, metres along the optical axis; pixels that are 0, negative or not finite have no depth.
        intrinsics: 3×3, for this resolution, as `depthfm_diffusers.geometry` defines them.
        mask: H×W, bool; pixels to use, for example those that are not sky. `None`: all that have a depth.
        settings: What is removed.

    Returns:
        The surface. Its points come in the order of the pixels, row by row.

    Raises:
        ValueError: If a shape or a type does not fit, or no point is left.
    """
    known = known_depth(depth, mask, settings.max_depth)
    intrinsics = np.asarray(intrinsics, dtype=np.float64)
    if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all() or min(intrinsics[0, 0], intrinsics[1, 1]) <= 0:
        raise ValueError(
            f"`intrinsics` must be 3×3 and finite with positive focal lengths, got {intrinsics.tolist()}."
        )
    height, width = known.shape
    if not known.any():
        raise ValueError(f"no point is left of the depth map of {width} x {height} pixels: none has a depth in range.")
    rows, columns = np.arange(height), np.arange(width)
    # Before the map is thinned out: between rows that are left out, edges would look sharp.
    known &= ~flying_pixels(depth, known, settings)
    stride = math.ceil(math.sqrt(known.size / settings.max_points))
    while math.ceil(height / stride) * math.ceil(width / stride) > settings.max_points:
        stride += 1
    rows, columns, known = rows[::stride], columns[::stride], known[::stride, ::stride]
    if not known.any():
        raise ValueError(f"no point is left of the depth map of {width} x {height} pixels: all lie between surfaces.")
    z = np.where(known, depth[::stride, ::stride], 1).astype(np.float64)
    x = (columns - intrinsics[0, 2]) / intrinsics[0, 0] * z
    y = ((rows - intrinsics[1, 2]) / intrinsics[1, 1])[:, None] * z
    points = np.stack([x, y, z], axis=-1)
    index = np.cumsum(known).reshape(known.shape) - 1
    faces = _triangles(np.where(known, 1 / z, np.nan), points, settings)
    pixels = np.argwhere(known)
    return Surface(
        points[known].astype(np.float32),
        np.stack([rows[pixels[:, 0]], columns[pixels[:, 1]]], axis=-1),
        index.ravel()[faces],
        (height, width),
    )


def known_depth(depth: np.ndarray, mask: np.ndarray | None = None, max_depth: float | None = None) -> NDArray[np.bool]:
    """Returns where a depth map has a depth, H×W.

    Args:
        depth: H×W, metres.
        mask: H×W, bool; pixels to use. `None`: all.
        max_depth: Metres; what is farther does not count. `None`: no limit.

    Raises:
        ValueError: If a shape or a type does not fit.
    """
    if depth.ndim != 2 or depth.size == 0 or depth.dtype.kind != "f":
        raise ValueError(f"`depth` must be one map of floats, H×W, got {depth.dtype} of shape {depth.shape}.")
    known = np.isfinite(depth) & (depth > 0)
    if mask is not None:
        if mask.shape != depth.shape or mask.dtype != bool:
            raise ValueError(
                f"`mask` must be bool of the depth's shape {depth.shape}, got {mask.dtype} of shape {mask.shape}."
            )
        known &= mask
    if max_depth is not None:
        known &= depth <= max_depth
    return known


def flying_pixels(
    depth: np.ndarray, known: NDArray[np.bool], settings: SurfaceSettings = SurfaceSettings()
) -> NDArray[np.bool]:
    """Finds the pixels of blurred edges, which lie in the air between the thing in front and what is behind it.

    Along a row, a column or a diagonal, such a pixel is nearer than the pixel half an edge's width to one side and
    farther than the one to the other side, and the inverse depth changes here otherwise than it does before and after.

    Args:
        depth: H×W, metres.
        known: H×W, bool; where it has a depth.
        settings: `tolerance` and `edge_width`.

    Returns:
        H×W, bool.
    """
    reach = round(settings.edge_width * max(depth.shape) / 2)
    found = np.zeros(depth.shape, dtype=bool)
    if reach == 0:
        return found
    inverse = np.full(depth.shape, np.nan)
    inverse[known] = 1 / depth[known].astype(np.float64)
    for down, right in DIRECTIONS:
        length = reach if down == 0 or right == 0 else max(1, round(reach / math.sqrt(2)))

        def at(distance: int, down: int = down * length, right: int = right * length) -> NDArray[np.float64]:
            return _shifted(inverse, distance * down, distance * right)

        before, after = at(-1), at(1)
        change = after - before
        # `fmin` leaves out the side where the map ends; with neither side, NaN, nothing is found.
        bend = np.fmin(abs(change - (before - at(-3))), abs(change - (at(3) - after)))
        between = np.minimum(abs(inverse - before), abs(after - inverse))
        is_monotone = (inverse - before) * (after - inverse) > 0
        found |= is_monotone & (np.minimum(between, bend) > settings.tolerance * inverse)
    return found


def jumps(depth: np.ndarray, tolerance: float) -> NDArray[np.bool]:
    """Finds where depth jumps from a pixel to the next one in its row.

    Args:
        depth: H×W, metres; NaN where not known.
        tolerance: Difference in inverse depth, relative to the smaller value, from which it is a jump.

    Returns:
        H×(W-1), bool; False beside pixels that are not known.
    """
    inverse = 1 / depth.astype(np.float64)
    return ~_joined(inverse, tolerance) & ~np.isnan(np.diff(inverse, axis=1))


def _shifted(values: NDArray[np.float64], down: int, right: int) -> NDArray[np.float64]:
    """Returns the values so many rows below and columns to the right of each pixel; NaN outside the map."""
    height, width = values.shape
    shifted = np.full_like(values, np.nan)
    rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
    target = np.s_[max(0, -down) : max(0, -down) + rows, max(0, -right) : max(0, -right) + columns]
    source = np.s_[max(0, down) : max(0, down) + rows, max(0, right) : max(0, right) + columns]
    shifted[target] = values[source]
    return shifted


def _joined(inverse: NDArray[np.float64], tolerance: float) -> NDArray[np.bool]:
    """Returns whether each pixel lies on one surface with the next one in its row, H×(W-1).

    Args:
        inverse: H×W, inverse depth; NaN where not known.
        tolerance: Relative difference from which it is a jump.
    """
    step = np.diff(inverse, axis=1)
    neighbours = np.pad(step, ((0, 0), (2, 2)), constant_values=np.nan)
    # Two steps on each side: one alone may be a jump of the same size, past a thing that is a pixel wide.
    change = [abs(step - neighbours[:, 2 + k : 2 + k + step.shape[1]]) for k in (-2, -1, 1, 2)]
    bend = np.fmin(np.maximum(change[0], change[1]), np.maximum(change[2], change[3]))
    bend = np.fmin(bend, abs(step))
    return bend <= tolerance * np.minimum(inverse[:, 1:], inverse[:, :-1])


def _triangles(
    inverse: NDArray[np.float64], points: NDArray[np.float64], settings: SurfaceSettings
) -> NDArray[np.int64]:
    """Returns the triangles of the pixel grid that lie on a surface, M×3 indices of pixels (row by row).

    Args:
        inverse: H×W, inverse depth; NaN where not known.
        points: H×W×3.
        settings: `tolerance` and `max_angle`.
    """
    height, width = inverse.shape
    across, down = _joined(inverse, settings.tolerance), _joined(inverse.T, settings.tolerance).T
    index = np.arange(height * width).reshape(height, width)
    # a b
    # c d
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    top, bottom, left, right = across[:-1], across[1:], down[:, :-1], down[:, 1:]
    flat = points.reshape(-1, 3)
    smallest = math.cos(math.radians(settings.max_angle))

    def kept(joined: NDArray[np.bool], *corners: NDArray[np.int64]) -> NDArray[np.bool]:
        first, second, third = (flat[corner] for corner in corners)
        normal = np.cross(second - first, third - first)
        view = first + second + third
        lengths = np.linalg.norm(normal, axis=-1) * np.linalg.norm(view, axis=-1)
        return joined & (abs((normal * view).sum(-1)) >= smallest * lengths)

    # The two ways to halve a square; the one that keeps more, otherwise the one along the smaller difference.
    ways = [((a, c, d), (a, d, b)), ((a, c, b), (b, c, d))]
    joins = [(left & bottom, top & right), (left & top, bottom & right)]
    halves = [
        [kept(join, *triangle) for join, triangle in zip(*pair, strict=True)] for pair in zip(joins, ways, strict=True)
    ]
    flat_inverse = inverse.ravel()
    differences = abs(flat_inverse[a] - flat_inverse[d]), abs(flat_inverse[b] - flat_inverse[c])
    counts = [first.astype(int) + second for first, second in halves]
    falling = (counts[0] > counts[1]) | ((counts[0] == counts[1]) & (differences[0] <= differences[1]))
    chosen = [
        np.stack([corner[half & is_way] for corner in triangle], axis=-1)
        for is_way, way, half_pair in ((falling, ways[0], halves[0]), (~falling, ways[1], halves[1]))
        for triangle, half in zip(way, half_pair, strict=True)
    ]
    return np.concatenate(chosen)
