"""What the validations share: held-out frames in, scores and a picture out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.logging import get_logger

from ...frames import FrameError
from ..data.sources import MixedFrames

logger = get_logger(__name__)


@dataclass(frozen=True)
class Validation:
    """Result of a validation.

    Attributes:
        scores: By name.
        title: Names the columns of the picture.
        picture: H×W×3, uint8.
    """

    scores: Mapping[str, float]
    title: str
    picture: np.ndarray


def read_frames(frames: MixedFrames, indices: Sequence[int], skip_bad_frames: bool) -> Iterator[Any]:
    """Yields the frames at `indices`; one that cannot be used raises `FrameError`, or is left out with a warning."""
    for index in indices:
        try:
            yield frames[index]
        except FrameError as error:
            if not skip_bad_frames:
                raise
            logger.warning(f"Skipped in validation: {error}")


def picture_grid(rows: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Tiles pictures; smaller ones are padded with white at the right and at the bottom.

    Args:
        rows: Per row, as many tensors 3×H×W or 1×H×W in [-1, 1]; values outside are clipped.

    Returns:
        H'×W'×3, uint8.
    """
    height = max(tile.shape[-2] for row in rows for tile in row)
    width = max(tile.shape[-1] for row in rows for tile in row)

    def pad(tile: torch.Tensor) -> torch.Tensor:
        padding = (0, width - tile.shape[-1], 0, height - tile.shape[-2])
        return F.pad(tile.float().expand(3, -1, -1), padding, value=1.0)

    grid = torch.cat([torch.cat([pad(tile) for tile in row], dim=-1) for row in rows], dim=-2)
    return ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
