"""A frame of RGB and metric depth, an image with a caption, and the split of both by scene."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

logger = logging.getLogger(__name__)


class FrameError(ValueError):
    """A single frame cannot be used. The message names the frame, its file and the field at fault."""


@dataclass(frozen=True)
class Frame:
    """One rendered or photographed view with its depth.

    Attributes:
        key: Name of the frame inside its source.
        scene: Frames of the same scene have the same name here; data are split by it.
        image: H×W×3, uint8, RGB.
        depth: H×W, float32, planar depth along the optical axis in metres; 0 where it is not known, and at the sky.
        intrinsics: 3×3, float32, pixels, as `depthfm_diffusers.geometry` defines them (pixel centres at integers);
            `None` where the camera is not known.
        sky: H×W, bool; where the source says that there is sky. `None` where it does not tell sky from unknown.
    """

    key: str
    scene: str
    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray | None = None
    sky: np.ndarray | None = None


@dataclass(frozen=True)
class CaptionedImage:
    """An image and a text that describes it.

    Attributes:
        key: Name of the image inside its source.
        scene: Images of the same scene have the same name here; the key, where the source does not say.
        image: H×W×3, uint8, RGB, upright.
        caption: The text; empty if there is none.
    """

    key: str
    scene: str
    image: np.ndarray
    caption: str


def split_by_scene(scenes: Sequence[str], validation_fraction: float) -> tuple[list[int], list[int]]:
    """Splits frame indices so that no scene is on both sides.

    The side of a scene depends on a hash of its name alone: adding shards never moves a frame to the other side.

    Args:
        scenes: Scene name of each frame.
        validation_fraction: Expected share of the scenes that are used for validation, in [0, 1).

    Returns:
        Indices for training and for validation, both increasing.

    Raises:
        ValueError: If `validation_fraction` is out of range.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}.")

    def in_validation(scene: str) -> bool:
        digest = hashlib.sha256(scene.encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < validation_fraction

    sides = {scene: in_validation(scene) for scene in set(scenes)}
    train = [i for i, scene in enumerate(scenes) if not sides[scene]]
    validation = [i for i, scene in enumerate(scenes) if sides[scene]]
    if validation_fraction > 0 and not validation:
        logger.warning(f"None of the {len(sides)} scenes is in the validation part: nothing will be validated.")
    return train, validation
