"""Stereo pictures from one photograph and its depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Share of the nearest point's inverse depth by which the pixels of one surface may differ.
SAME_SURFACE = 0.05


@dataclass(frozen=True)
class StereoSettings:
    """How far the two views of a stereo picture differ.

    Attributes:
        max_shift: Horizontal distance between the views of the nearest point, when that of an infinitely far one is 0,
            as a share of the width.
        screen: Where the screen is between infinity (0) and the nearest point (1): what is nearer stands out of it.

    Raises:
        ValueError: If a value is out of its range.
    """

    max_shift: float = 0.04
    screen: float = 0.5

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 < self.max_shift <= 0.25:
            raise ValueError(f"`max_shift` must be in (0, 0.25], a share of the width, got {self.max_shift}.")
        if not 0 <= self.screen <= 1:
            raise ValueError(f"`screen` must be in [0, 1], got {self.screen}.")


def stereo_views(
    image: np.ndarray, depth: np.ndarray, settings: StereoSettings = StereoSettings()
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Makes the views of the left and the right eye; each is moved by half of the shift.

    Pixels are moved by their inverse depth, near ones over far ones. What comes into view from behind a thing is
    filled with what is beside it in the background.

    Args:
        image: H×W×3, uint8.
        depth: H×W, positive and finite, along the optical axis; a factor on it changes nothing.
        settings: How far the views differ.

    Returns:
        The left and the right view, H×W×3, uint8.

    Raises:
        ValueError: If a shape or a type does not fit, or the depth is not positive and finite.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(f"`image` must be H×W×3 and uint8, got {image.dtype} of shape {image.shape}.")
    if depth.shape != image.shape[:2]:
        raise ValueError(f"`depth` must have the size of the image, {image.shape[:2]}, got {depth.shape}.")
    if not (np.isfinite(depth).all() and (depth > 0).all()):
        raise ValueError("`depth` must be positive and finite everywhere to move pixels by it.")
    nearness = depth.min() / depth.astype(np.float64)
    shift = (nearness - settings.screen) * settings.max_shift * image.shape[1]
    left, right = (_moved(image, sign * shift / 2, nearness) for sign in (1, -1))
    return left, right


def side_by_side(left: np.ndarray, right: np.ndarray) -> NDArray[np.uint8]:
    """Puts the views beside each other, the left one on the left: for parallel viewing and headsets."""
    return np.concatenate([left, right], axis=1)


def anaglyph(left: np.ndarray, right: np.ndarray) -> NDArray[np.uint8]:
    """Puts the views over each other for glasses with a red glass on the left and a cyan one on the right."""
    return np.concatenate([left[..., :1], right[..., 1:]], axis=-1)


def _moved(image: NDArray[np.uint8], shift: NDArray[np.float64], nearness: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Moves each pixel to the right by its shift; holes are filled from the background.

    Args:
        image: H×W×3.
        shift: H×W, pixels.
        nearness: H×W; where two pixels come to the same place, the larger one stays.
    """
    height, width = shift.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)
    # From far to near: the last one written stays.
    order = np.argsort(nearness, axis=1, kind="stable")
    target = np.take_along_axis(np.floor(columns + shift + 0.5).astype(int), order, axis=1)
    row, kept = np.nonzero((target >= 0) & (target < width))
    source = np.full((height, width), np.nan)  # the column that each pixel comes from
    source[row, target[row, kept]] = columns[target[row, kept]] - shift[row, order[row, kept]]
    front = np.full((height, width), -np.inf)
    front[row, target[row, kept]] = nearness[row, order[row, kept]]

    # A surface that is stretched has gaps of one pixel.
    around = (source[:, :-2] + source[:, 2:]) / 2
    gap = np.isnan(source[:, 1:-1]) & (source[:, 2:] - source[:, :-2] < 3)
    source[:, 1:-1][gap] = around[gap]
    front[:, 1:-1][gap] = np.minimum(front[:, :-2], front[:, 2:])[gap]

    known = ~np.isnan(source)
    exact = np.clip(np.where(known, source, 0), 0, width - 1)
    low = np.minimum(exact.astype(int), max(0, width - 2))
    high = np.minimum(low + 1, width - 1)
    # Colours are not mixed across a jump: the one of this surface counts.
    off_low, off_high = abs(nearness[rows, low] - front), abs(nearness[rows, high] - front)
    across = abs(nearness[rows, low] - nearness[rows, high]) > SAME_SURFACE
    weight = np.where(across, off_high < off_low, exact - low)[..., None]
    view = image[rows, low] * (1 - weight) + image[rows, high] * weight
    fill = _background(known, front)
    view = np.where((known | (fill < 0))[..., None], view, np.take_along_axis(view, fill.clip(0)[..., None], axis=1))
    return np.rint(view).astype(np.uint8)


def _background(known: NDArray[np.bool], front: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the column in the same row that fills each hole; -1 for rows without any known pixel.

    The hole is filled by the mirror image of what is on the side that is farther away, as far as that goes.

    Args:
        known: H×W; elsewhere are the holes.
        front: H×W, nearness.
    """
    width = known.shape[1]
    columns = np.broadcast_to(np.arange(width), known.shape)
    left = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    right = np.minimum.accumulate(np.where(known, columns, width)[:, ::-1], axis=1)[:, ::-1]
    level_left = np.where(left >= 0, np.take_along_axis(front, left.clip(0), axis=1), np.inf)
    level_right = np.where(right < width, np.take_along_axis(front, right.clip(max=width - 1), axis=1), np.inf)
    from_left = level_left <= level_right
    side = np.where(from_left, left, right)
    level = np.where(from_left, level_left, level_right)
    mirrored = np.where(from_left, 2 * left + 1, 2 * right - 1) - columns
    inside = mirrored.clip(0, width - 1)
    same = (mirrored == inside) & np.take_along_axis(known, inside, axis=1)
    same &= np.take_along_axis(front, inside, axis=1) <= level + SAME_SURFACE
    fill = np.where(same, inside, side)
    return np.where((fill >= 0) & (fill < width), fill, -1)
