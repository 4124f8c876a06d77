"""Frames as tensors, and augmentations that keep depth and camera consistent with the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ...frames import Frame


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges of the random changes to a frame; the default of each field switches it off.

    Attributes:
        flip: Whether to mirror half of the frames.
        min_crop: Smallest side of the random crop, as a share of the frame's, in (0, 1].
        jitter: Strength of the colour changes in [0, 1).
    """

    flip: bool = False
    min_crop: float = 1.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0.0 < self.min_crop <= 1.0:
            raise ValueError(f"min_crop must be in (0, 1], got {self.min_crop}.")
        if not 0.0 <= self.jitter < 1.0:
            raise ValueError(f"jitter must be in [0, 1), got {self.jitter}.")


@dataclass(frozen=True)
class View:
    """A frame after augmentation, as tensors.

    Attributes:
        image: 3×H×W, float32 in [0, 1].
        depth: 1×H×W, float32 metres, 0 where not known.
        intrinsics: 3×3, float32, pixels, as `depthfm_diffusers.geometry` defines them; NaN where the camera is not
            known.
        sky: 1×H×W, bool; where the data mark sky.
    """

    image: torch.Tensor
    depth: torch.Tensor
    intrinsics: torch.Tensor
    sky: torch.Tensor


def image_tensor(image: np.ndarray) -> torch.Tensor:
    """Converts an image from H×W×3, uint8, to 3×H×W, float32 in [0, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def frame_to_view(frame: Frame) -> View:
    """Converts a frame to tensors, unchanged."""
    depth = torch.from_numpy(frame.depth.copy())[None]
    if frame.intrinsics is None:
        intrinsics = torch.full((3, 3), math.nan)
    else:
        intrinsics = torch.from_numpy(frame.intrinsics.copy())
    sky = torch.zeros_like(depth, dtype=torch.bool) if frame.sky is None else torch.from_numpy(frame.sky.copy())[None]
    return View(image_tensor(frame.image), depth, intrinsics, sky)


def augment_view(view: View, config: AugmentationConfig, rng: np.random.Generator) -> View:
    """Crops at random (and resizes back), mirrors and changes colours; depth is resized without mixing neighbours.

    A crop leaves planar depth unchanged and changes the intrinsics; a mirror moves the principal point. Unknown
    intrinsics stay unknown. What is drawn from `rng` depends on the view's size and the ranges alone.
    """
    if config.min_crop < 1.0:
        view = _random_crop(view, config.min_crop, rng)
    if config.flip and rng.random() < 0.5:
        view = flip_view(view)
    if config.jitter > 0.0:
        view = replace(view, image=_jitter(view.image, config.jitter, rng))
    return view


def flip_view(view: View) -> View:
    """Mirrors left and right."""
    intrinsics = view.intrinsics.clone()
    intrinsics[0, 2] = view.image.shape[-1] - 1 - intrinsics[0, 2]
    return View(view.image.flip(-1), view.depth.flip(-1), intrinsics, view.sky.flip(-1))


def crop_view(view: View, top: int, left: int, height: int, width: int) -> View:
    """Cuts a rectangle out, without resizing.

    Raises:
        ValueError: If the rectangle is empty or not inside the view.
    """
    full_height, full_width = view.image.shape[-2:]
    inside = 0 <= top <= full_height - height and 0 <= left <= full_width - width
    if not inside or height < 1 or width < 1:
        raise ValueError(
            f"The crop of {height}×{width} at ({top}, {left}) (height × width at top, left) does not lie in a view of "
            f"{full_height}×{full_width}."
        )
    intrinsics = view.intrinsics.clone()
    intrinsics[0, 2] -= left
    intrinsics[1, 2] -= top
    window = (..., slice(top, top + height), slice(left, left + width))
    return View(view.image[window], view.depth[window], intrinsics, view.sky[window])


def resize_view(view: View, height: int, width: int) -> View:
    """Resizes: the image with antialiasing, depth and sky by nearest neighbour so that edges stay edges."""
    image = F.interpolate(view.image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    depth = F.interpolate(view.depth[None], (height, width), mode="nearest-exact")[0]
    sky = F.interpolate(view.sky[None].float(), (height, width), mode="nearest-exact")[0] > 0
    scale = torch.tensor([width / view.image.shape[-1], height / view.image.shape[-2], 1.0])
    intrinsics = view.intrinsics * scale[:, None]
    # Pixel centres are at integers, and the image's edge, which does not move, is half a pixel outside of them.
    intrinsics[:2, 2] += (scale[:2] - 1) / 2
    return View(image.clamp(0, 1), depth, intrinsics, sky)


def _random_crop(view: View, min_crop: float, rng: np.random.Generator) -> View:
    height, width = view.image.shape[-2:]
    share = rng.uniform(min_crop, 1.0)
    crop_height, crop_width = max(1, round(height * share)), max(1, round(width * share))
    top = int(rng.integers(0, height - crop_height + 1))
    left = int(rng.integers(0, width - crop_width + 1))
    return resize_view(crop_view(view, top, left, crop_height, crop_width), height, width)


def _jitter(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    def factor() -> float:
        return float(np.exp(rng.uniform(-strength, strength)))

    image = image.clamp_min(1e-4) ** factor()
    gains = torch.tensor([factor() for _ in range(3)], dtype=torch.float32) ** 0.5
    image = image * (gains * factor())[:, None, None]
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * (0.0 if rng.random() < 0.1 else factor())
    image = (image - image.mean()) * factor() + image.mean()
    return image.clamp(0, 1)
