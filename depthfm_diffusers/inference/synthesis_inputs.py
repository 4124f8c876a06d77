"""The inputs of `depthfm synthesize`: photos or a given depth map, and for inpainting a mask."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..image_processing import load_image
from ..pictures import picture_grey
from ..pipelines.depthfm_controlnet.controlnet_inputs import MASK_THRESHOLD, load_log_depths
from ..utils.files import file_sha256


@dataclass(frozen=True)
class SynthesisSources:
    """The inputs of a run.

    Attributes:
        files: Absolute paths of the photos; or of the one depth map, if there is no photo.
        depth_file: The file of the depth map that is given instead of estimated, or `None`.
        log_depth: Its log depth, 1×1×H×W.
        has_photos: Whether `files` are photos.
        mask_file: For inpainting, the file of the mask.
        mask: The mask.
        is_log_file: Whether `depth_file` holds log depth, not depth.
        max_pixels: Most pixels that a photo may have; `None`: 120 million.
    """

    files: Sequence[Path]
    depth_file: Path | None = None
    log_depth: torch.Tensor | None = None
    has_photos: bool = True
    mask_file: Path | None = None
    mask: Image.Image | None = None
    is_log_file: bool = False
    max_pixels: int | None = None

    def protected(self) -> list[Path]:
        """Returns all files that are read; they may be in the output folder and must not be overwritten."""
        return [*self.files, *(Path(os.path.abspath(one)) for one in (self.depth_file, self.mask_file) if one)]

    def describe(self) -> dict[str, Any]:
        """Describes the files that all images of a run have in common, for a record."""
        shared = {"log_depth" if self.is_log_file else "depth": self.depth_file, "mask": self.mask_file}
        return {
            name: {"file": os.path.abspath(file), "sha256": file_sha256(file)}
            for name, file in shared.items()
            if file is not None
        }


def read_depth_file(path: Path, is_log: bool, max_pixels: int | None = None) -> torch.Tensor:
    """Reads a depth map that is given instead of estimated.

    Args:
        path: `.npy`, or for depth a picture of 16 or 32 bit.
        is_log: Whether it is log depth, as in `NAME_log_depth.npy`, instead of depth.
        max_pixels: Most pixels that a picture may have; `None`: 120 million.

    Returns:
        Its log depth, 1×1×H×W.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds something else than one depth map.
    """
    try:
        value: Any
        if path.suffix.lower() == ".npy":
            value = np.load(path, allow_pickle=False)
        elif is_log:
            raise ValueError("log depth is read from .npy files.")
        else:
            value = load_image(path, max_pixels)
        maps = load_log_depths(None, value) if is_log else load_log_depths(value, None)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"depth file {path}: {error}") from error
    if maps is None or len(maps) != 1 or len(maps[0]) != 1:
        raise ValueError(f"depth file {path}: it must hold one map.")
    return maps[0]


def read_mask_file(path: Path, max_pixels: int | None = None) -> Image.Image:
    """Reads the mask of an inpainting.

    Args:
        path: The picture.
        max_pixels: Most pixels that it may have; `None`: 120 million.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no picture, or black everywhere: darker than mid-grey.
    """
    mask = load_image(path, max_pixels)
    if not (picture_grey(mask) >= MASK_THRESHOLD).any():
        raise ValueError(f"mask {path}: it is black everywhere; paint white what is to be generated anew.")
    return mask
