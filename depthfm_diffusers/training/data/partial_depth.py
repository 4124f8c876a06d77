"""Simulated partial depth: which pixels of a depth map a sensor would know, how wrong they are, and samples of it.

Each pattern takes where the depth is known, the depth and the camera, and returns the pixels that are kept, a part of
the known ones. All randomness is from the generator that is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ...partial_depth import normalize_between, partial_depth_maps, point_bounds

Mask = NDArray[np.bool_]
Depth = NDArray[np.float32]

NO_FOCAL_LENGTH = 1.0  # focal length in image widths where the camera is not known: a field of view of 53°
POINT_SHARES = (0.0002, 0.05)  # of all pixels
LINES = (4, 48)  # scan lines in the image
MISSING_LINES = 0.2  # at most, share of the lines
MISSING_RETURNS = 0.3  # at most, share of the pixels of a line
BORDER = 0.3  # at most, share of the image at each side
BOXES = 6  # at most
BOX_SIDES = (0.1, 0.5)  # share of the image's side
EDGE_JUMP = 1.1  # ratio of neighbouring depths from which on there is an edge
EDGE_WIDTH = 4  # at most, pixels on each side of an edge
MASKED_SHARES = (0.25, 0.85)  # of the image, under a large mask
NOISE = (0.001, 0.03)  # standard deviation at the median depth, as a share of it
NOISY_SHARE = 0.5  # of the samples
OUTLIERS = 0.05  # at most, share of the points
OUTLIER_RANGE = 2.0  # outliers lie up to this factor beyond the frame's nearest and farthest depth


def random_points(known: Mask, depth: Depth, focal_length: float, rng: np.random.Generator) -> Mask:
    """Keeps single pixels, 0.02 % to 5 % of the image (log-uniform) and at least one, if as many are known."""
    share = math.exp(rng.uniform(*np.log(POINT_SHARES)))
    candidates = np.flatnonzero(known)
    count = min(max(1, round(share * known.size)), len(candidates))
    kept = np.zeros(known.size, dtype=bool)
    kept[rng.choice(candidates, count, replace=False)] = True
    return kept.reshape(known.shape)


def lidar_lines(known: Mask, depth: Depth, focal_length: float, rng: np.random.Generator) -> Mask:
    """Keeps the scan lines of a rotating scanner that is roughly upright; some lines and returns are missing.

    A beam of a constant elevation φ draws the line v = tan(φ) sqrt(f² + u²) in a picture, in pixels from its centre.
    """
    height, width = known.shape
    v, u = np.mgrid[0:height, 0:width] - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
    angle = rng.normal(0, math.radians(3))
    v, u = v * math.cos(angle) - u * math.sin(angle), u * math.cos(angle) + v * math.sin(angle)
    lines = math.exp(rng.uniform(*np.log(LINES)))
    line = np.floor(v * focal_length / np.hypot(focal_length, u) * lines / height + rng.random()).astype(int)
    kept = np.zeros(known.shape, dtype=bool)
    kept[1:] = line[1:] != line[:-1]
    missing = rng.random(line.max() - line.min() + 1) < rng.uniform(0, MISSING_LINES)
    return kept & known & ~missing[line - line.min()] & (rng.random(known.shape) >= rng.uniform(0, MISSING_RETURNS))


def missing_border(known: Mask, depth: Depth, focal_length: float, rng: np.random.Generator) -> Mask:
    """Keeps what is inside of a rectangle: a sensor with a narrower view than the camera."""
    height, width = known.shape
    top, bottom, left, right = rng.uniform(0, BORDER, 4)
    kept = np.zeros_like(known)
    kept[round(top * height) : round((1 - bottom) * height), round(left * width) : round((1 - right) * width)] = True
    return kept & known


def missing_boxes(known: Mask, depth: Depth, focal_length: float, rng: np.random.Generator) -> Mask:
    """Leaves out one rectangle or several."""
    kept = known.copy()
    for _ in range(rng.integers(1, BOXES + 1)):
        height, width = (max(1, round(rng.uniform(*BOX_SIDES) * side)) for side in known.shape)
        top, left = (
            int(rng.integers(0, side - size + 1)) for side, size in zip(known.shape, (height, width), strict=True)
        )
        kept[top : top + height, left : left + width] = False
    return kept


def missing_edges(known: Mask, depth: Depth, focal_length: float, rng: np.random.Generator) -> Mask:
    """Leaves out the surroundings of depth edges, as stereo and time-of-flight cameras do."""
    log_depth = torch.from_numpy(np.log(np.where(known, depth, 1.0)))[None, None].float()
    valid = torch.from_numpy(known)[None, None]
    far = F.max_pool2d(torch.where(valid, log_depth, -math.inf), 3, 1, 1)
    near = -F.max_pool2d(torch.where(valid, -log_depth, -math.inf), 3, 1, 1)
    width = int(rng.integers(1, EDGE_WIDTH + 1))
    edges = F.max_pool2d((far - near > math.log(EDGE_JUMP)).float(), 2 * width - 1, 1, width - 1)
    return known & ~(edges[0, 0] > 0).numpy()


def large_mask(known: Mask, depth: Depth, focal_length: float, rng: np.random.Generator) -> Mask:
    """Leaves out a quarter to 85 % of the image in large irregular regions, as inpainting asks for."""
    coarse = rng.standard_normal((1, 1, *rng.integers(3, 7, 2)))
    smooth = F.interpolate(torch.from_numpy(coarse), known.shape, mode="bicubic", align_corners=True)[0, 0].numpy()
    return known & (smooth > np.quantile(smooth, rng.uniform(*MASKED_SHARES)))


PATTERNS: dict[str, Callable[[Mask, Depth, float, np.random.Generator], Mask]] = {
    "points": random_points,
    "lidar": lidar_lines,
    "border": missing_border,
    "boxes": missing_boxes,
    "edges": missing_edges,
    "mask": large_mask,
}


def add_noise(points: Depth, rng: np.random.Generator) -> Depth:
    """Adds Gaussian noise whose deviation grows with the square of the depth, as that of stereo and structured light.

    Args:
        points: Metres, 0 where not known, known somewhere.
        rng: Source of the randomness.
    """
    known = points > 0
    relative = math.exp(rng.uniform(*np.log(NOISE))) * points / np.median(points[known])
    factor = 1 + relative * rng.standard_normal(points.shape)
    return np.where(known, points * np.clip(factor, 0.5, 2.0), 0).astype(np.float32)


def add_outliers(points: Depth, rng: np.random.Generator) -> Depth:
    """Replaces up to 5 % of the points by depths that have nothing to do with the scene, log-uniform.

    Args:
        points: Metres, 0 where not known, known somewhere.
        rng: Source of the randomness.
    """
    known = points > 0
    wrong = known & (rng.random(points.shape) < rng.uniform(0, OUTLIERS))
    near, far = points[known].min() / OUTLIER_RANGE, points[known].max() * OUTLIER_RANGE
    return np.where(wrong, np.exp(rng.uniform(np.log(near), np.log(far), points.shape)), points).astype(np.float32)


def simulate_points(depth: Depth, focal_length: float, rng: np.random.Generator) -> Depth:
    """Makes the partial depth that a sensor of a random kind would measure.

    One of the `PATTERNS`, all equally likely; half of the samples get noise, and half get outliers. A pattern that
    leaves nothing keeps one pixel.

    Args:
        depth: H×W, metres, 0 where not known.
        focal_length: Pixels.
        rng: Source of the randomness.

    Returns:
        H×W, metres, 0 where not known; everywhere if nothing of `depth` is known.
    """
    known = depth > 0
    if not known.any():
        return np.zeros_like(depth)
    kept = PATTERNS[list(PATTERNS)[rng.integers(len(PATTERNS))]](known, depth, focal_length, rng)
    if not kept.any():
        kept.flat[rng.choice(np.flatnonzero(known))] = True
    points = np.where(kept, depth, 0).astype(np.float32)
    if rng.random() < NOISY_SHARE:
        points = add_noise(points, rng)
    if rng.random() < NOISY_SHARE:
        points = add_outliers(points, rng)
    return points


class CompletionSamples(Dataset):
    """Samples for the flow with partial depth, and with the truth normalised by the bounds that it sets.

    What is simulated for a sample depends on its `completion_seed` alone, which `FlowDraws` draws. A sample gets
    `partial_depth` (3×H×W, see `partial_depth_maps`), and its `depth_map` and `bounds` are those of the points, see
    `depthfm_diffusers.partial_depth`. A sample without points keeps those of the frame's own quantiles: it teaches
    what the network predicts if nothing is known. Sky is 1, as without completion.

    The target's latent cannot be cached, as the bounds are others in each epoch; it is encoded in each step, as the
    partial depth is. The image's latent and its features can.

    Args:
        dataset: `FlowFrames`, or `CachedSamples` of them with depth.
        dropout: Share of the samples without points, in [0, 1].
        cell: Pixels per latent cell, along one side.
    """

    def __init__(self, dataset: Dataset, dropout: float, cell: int) -> None:
        self.dataset = dataset
        self.dropout = dropout
        self.cell = cell

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns one sample.

        Args:
            item: Epoch and index.
        """
        sample = dict(self.dataset[item])
        sample.pop("depth_latent", None)
        rng = np.random.default_rng(int(sample.pop("completion_seed")))
        # A skipped frame, or one without any depth, has no points either.
        known = torch.where(sample["known"], sample["depth"], 0.0)
        points, bounds = torch.zeros_like(known), None
        if known.any() and rng.random() >= self.dropout:
            points = torch.from_numpy(
                simulate_points(known[0].numpy(), focal_length(sample["intrinsics"], known), rng)
            )
            points = points[None]
            bounds = point_bounds(points)
            sample["depth_map"] = torch.where(sample["known"], normalize_between(known, *bounds), 1.0)
            sample["bounds"] = torch.tensor(bounds)
        return sample | {"partial_depth": partial_depth_maps(points, bounds, self.cell)}


def focal_length(intrinsics: torch.Tensor, image: torch.Tensor) -> float:
    """Returns the horizontal focal length in pixels; that of a field of view of 53° where it is not known.

    Args:
        intrinsics: 3×3, pixels; NaN if not known.
        image: …×H×W, of the camera's size.
    """
    given = float(intrinsics[0, 0])
    return given if math.isfinite(given) else NO_FOCAL_LENGTH * image.shape[-1]
