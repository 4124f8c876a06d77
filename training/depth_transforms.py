"""Depth as the model sees it, and the augmentations that keep its geometry true.

Normalised log depth: y = 2 (log d - log d_2) / (log d_98 - log d_2) - 1, clipped to [-1, 1], where d_2 and d_98 are
quantiles of the frame's valid pixels (2 % and 98 %: Marigold's choice; DepthFM's are not published).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from frames import Frame

from depthfm_diffusers.geometry import intrinsics_from_fov

QUANTILES = (0.02, 0.98)


@dataclass(frozen=True)
class NormalizedDepth:
    """A frame's normalised log depth and what is needed to undo it.

    Attributes:
        values: 1×H×W, float32 in [-1, 1]; invalid pixels hold 1 (far).
        valid: 1×H×W, bool; where the depth is known.
        log_near: log of the low quantile, log metres.
        log_far: log of the high quantile, log metres; equal to `log_near` for a frame of zero range.
    """

    values: torch.Tensor
    valid: torch.Tensor
    log_near: float
    log_far: float

    @property
    def has_range(self) -> bool:
        """False for a frame without valid pixels, or with a single depth: nothing can be learnt from it."""
        return self.log_far > self.log_near


def normalize_log_depth(depth: torch.Tensor, quantiles: tuple[float, float] = QUANTILES) -> NormalizedDepth:
    """Normalises metric depth, see the module's formula.

    Args:
        depth: 1×H×W in metres; not known where it is 0, negative or not finite.
        quantiles: Low and high quantile in [0, 1].
    """
    low, high = quantiles
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"quantiles must satisfy 0 <= low < high <= 1, got {quantiles}.")
    valid = torch.isfinite(depth) & (depth > 0)
    ones = torch.ones_like(depth, dtype=torch.float32)
    if not valid.any():
        return NormalizedDepth(ones, valid, 0.0, 0.0)
    log_depth = torch.log(torch.where(valid, depth, ones))
    # NumPy: torch.quantile refuses more than 2**24 values.
    log_near, log_far = (float(q) for q in np.quantile(log_depth[valid].numpy(), quantiles))
    if not log_far > log_near:
        return NormalizedDepth(ones, valid, log_near, log_near)
    values = (2 * (log_depth - log_near) / (log_far - log_near) - 1).clamp(-1, 1)
    return NormalizedDepth(torch.where(valid, values, ones), valid, log_near, log_far)


def denormalize_log_depth(values: torch.Tensor, log_near: torch.Tensor, log_far: torch.Tensor) -> torch.Tensor:
    """Inverse of `normalize_log_depth` inside the clip: depth in metres. The bounds broadcast against `values`."""
    return torch.exp(log_near + (values + 1) / 2 * (log_far - log_near))


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges of the random changes to a frame; the defaults of each field switch it off.

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
        intrinsics: 3×3, float32, pixels, as `depthfm_diffusers.geometry` defines them.
    """

    image: torch.Tensor
    depth: torch.Tensor
    intrinsics: torch.Tensor


def frame_to_view(frame: Frame) -> View:
    """The frame as it is, as tensors."""
    image = torch.from_numpy(frame.image.copy()).permute(2, 0, 1).float() / 255
    intrinsics = intrinsics_from_fov(frame.fov_x_deg, *frame.depth.shape)
    return View(image, torch.from_numpy(frame.depth.copy())[None], intrinsics)


def augment_view(view: View, config: AugmentationConfig, rng: np.random.Generator) -> View:
    """Random crop (resized back), mirror and colour change; depth is resized without mixing neighbours.

    A crop keeps planar depth as it is and changes the intrinsics; a mirror moves the principal point.
    """
    if config.min_crop < 1.0:
        view = _random_crop(view, config.min_crop, rng)
    if config.flip and rng.random() < 0.5:
        view = flip_view(view)
    if config.jitter > 0.0:
        view = View(_jitter(view.image, config.jitter, rng), view.depth, view.intrinsics)
    return view


def flip_view(view: View) -> View:
    """Mirrors left and right."""
    intrinsics = view.intrinsics.clone()
    intrinsics[0, 2] = view.image.shape[-1] - 1 - intrinsics[0, 2]
    return View(view.image.flip(-1), view.depth.flip(-1), intrinsics)


def crop_view(view: View, top: int, left: int, height: int, width: int) -> View:
    """Cuts a rectangle out, without resizing."""
    intrinsics = view.intrinsics.clone()
    intrinsics[0, 2] -= left
    intrinsics[1, 2] -= top
    window = (..., slice(top, top + height), slice(left, left + width))
    return View(view.image[window], view.depth[window], intrinsics)


def resize_view(view: View, height: int, width: int) -> View:
    """Resizes: the image with antialiasing, the depth by nearest neighbour so that edges stay edges."""
    image = F.interpolate(view.image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    depth = F.interpolate(view.depth[None], (height, width), mode="nearest-exact")[0]
    scale = torch.tensor([width / view.image.shape[-1], height / view.image.shape[-2], 1.0])
    intrinsics = view.intrinsics * scale[:, None]
    # Pixel centres are integers: the image's edge, which stays where it is, is half a pixel outside.
    intrinsics[:2, 2] += (scale[:2] - 1) / 2
    return View(image.clamp(0, 1), depth, intrinsics)


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
