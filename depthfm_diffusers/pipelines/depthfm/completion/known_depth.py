"""The depth that is known before a completion: checks, and points at the size that is worked at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ....metric import MILLIMETRES_FROM

logger = logging.getLogger(__name__)

# The fit has two unknowns, and one point does not tell how far the rest of the scene is.
MIN_POINTS = 2
# More points than this are thinned for the interpolation; every point counts in its own pixel.
MAX_INTERPOLATED_POINTS = 20_000


@dataclass(frozen=True)
class KnownDepth:
    """What is known of one image.

    Attributes:
        metres: H×W, float32; any value where nothing is known.
        known: H×W, bool.
    """

    metres: torch.Tensor
    known: torch.Tensor

    @property
    def log_depth(self) -> torch.Tensor:
        """H×W, log metres; 0 where nothing is known."""
        return torch.log(torch.where(self.known, self.metres, 1.0))

    def at_size(self, size: tuple[int, int]) -> KnownDepth:
        """Returns the same at another size (height, width): a pixel has the mean log depth of the points in it."""
        if tuple(self.known.shape) == tuple(size):
            return self
        rows, columns = self.known.nonzero().T
        height, width = self.known.shape
        pixels = (rows * size[0] // height) * size[1] + columns * size[1] // width
        sums = torch.zeros(2, size[0] * size[1], device=self.known.device)
        sums[0].index_add_(0, pixels, self.log_depth[self.known])
        sums[1].index_add_(0, pixels, torch.ones_like(self.log_depth[self.known]))
        total, count = sums.reshape(2, *size)
        return KnownDepth(torch.exp(total / count.clamp_min(1)), count > 0)

    def thinned(self) -> KnownDepth:
        """Returns at most `MAX_INTERPOLATED_POINTS` points, the first in each cell of a grid."""
        step, known = 1, self.known
        while int(known.sum()) > MAX_INTERPOLATED_POINTS:
            step += 1
            rows, columns = self.known.nonzero().T
            cells_across = -(-known.shape[1] // step)
            cells, inverse = torch.unique((rows // step) * cells_across + columns // step, return_inverse=True)
            order = torch.arange(len(rows), device=rows.device)
            first = torch.full_like(cells, len(rows)).scatter_reduce_(0, inverse, order, "amin")
            known = torch.zeros_like(self.known)
            known[rows[first], columns[first]] = True
        return KnownDepth(self.metres, known)


def read_known_depths(
    depth: Any, mask: Any, sizes: Sequence[tuple[int, int]], device: torch.device
) -> list[KnownDepth]:
    """Checks the `depth` and the `mask` of a call.

    Args:
        depth: As `DepthFMDepthCompletionPipeline.__call__` takes it.
        mask: Likewise.
        sizes: Height and width of each image.
        device: Where the result is to be.

    Returns:
        What is known of each image.

    Raises:
        TypeError: If something is neither an array nor a tensor.
        ValueError: If a map does not fit its image, holds values that are no depths, or too few of them.
    """
    depths = _split("depth", depth, len(sizes))
    masks = [(name, None) for name, _ in depths] if mask is None else _split("mask", mask, len(sizes))
    return [_read_one(*one, *of_mask, size, device) for one, of_mask, size in zip(depths, masks, sizes, strict=True)]


def _split(name: str, maps: Any, count: int) -> list[tuple[str, Any]]:
    """Returns the maps of `count` images, each with what errors call it."""
    if isinstance(maps, (list, tuple)):
        if len(maps) != count:
            raise ValueError(f"`{name}` must be a list of one map per image, {count}, got {len(maps)}.")
        return [(f"`{name}[{i}]`", one) for i, one in enumerate(maps)]
    if not isinstance(maps, (np.ndarray, torch.Tensor)):
        raise TypeError(f"`{name}` must be an array or a tensor, or a list of them, got {type(maps).__name__}.")
    several = maps.ndim == 4 or (maps.ndim == 3 and 1 not in (maps.shape[0], maps.shape[-1])) or count > 1
    if not several:
        return [(f"`{name}`", maps)]
    if maps.ndim < 3 or len(maps) != count:
        raise ValueError(
            f"`{name}` must have one map per image: a list of {count}, or H×W maps stacked to {count}×H×W; got shape "
            f"{tuple(maps.shape)}."
        )
    return [(f"`{name}[{i}]`", one) for i, one in enumerate(maps)] if count > 1 else [(f"`{name}`", maps[0])]


def _one_map(name: str, value: Any, size: tuple[int, int]) -> torch.Tensor:
    """Returns one map H×W of the size of its image, without axes of length 1."""
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        raise TypeError(f"{name} must be an array or a tensor, got {type(value).__name__}.")
    tensor = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value.detach()
    if tensor.ndim == 3:
        tensor = tensor[0] if tensor.shape[0] == 1 else tensor[..., 0] if tensor.shape[-1] == 1 else tensor
    if tuple(tensor.shape) != tuple(size):
        raise ValueError(
            f"{name} must have the size of its image, {size[0]}×{size[1]} (height × width), got shape "
            f"{tuple(value.shape)}: a map of another camera or size has to be projected into the image first."
        )
    return tensor


def _read_one(
    name: str, depth: Any, mask_name: str, mask: Any, size: tuple[int, int], device: torch.device
) -> KnownDepth:
    metres = _one_map(name, depth, size)
    if not metres.is_floating_point():
        raise ValueError(
            f"{name} must hold floats in metres, got {metres.dtype}: integers are usually millimetres, which times "
            "0.001 are metres."
        )
    metres = metres.float()
    known = ~metres.isnan() & (metres != 0)
    if mask is not None:
        given = _one_map(mask_name, mask, size)
        if given.dtype != torch.bool:
            raise ValueError(f"{mask_name} must be bool, True where the depth is known, got {given.dtype}.")
        known &= given.to(known.device)
    values = metres[known]
    if values.isinf().any():
        raise ValueError(f"{name} holds infinite values: where nothing is known, it must be 0 or NaN.")
    if (values < 0).any():
        raise ValueError(
            f"{name} holds negative values, down to {values.min():g} m: where nothing is known, it must be 0 or NaN."
        )
    if len(values) < MIN_POINTS:
        found = "no known point" if len(values) == 0 else "a single known point"
        where = " (all others are left out by the mask)" if mask is not None else ""
        raise ValueError(
            f"{name} has {found}{where}: completion needs at least {MIN_POINTS} pixels with depth. One point gives "
            "the scale of the depth, but not its range: depthfm_diffusers.metric.fit_points takes an assumption."
        )
    if values.median() > MILLIMETRES_FROM:
        logger.warning(
            f"{name} has a median of {values.median():g} m. If these are millimetres, multiply them by 0.001 "
            "(--scale 0.001); otherwise the result is in the same unit."
        )
    return KnownDepth(metres.to(device), known.to(device))
