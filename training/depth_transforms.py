"""Depth as the model sees it, and the augmentations that keep its geometry true.

Normalised log depth: y = 2 (log d - log d_2) / (log d_98 - log d_2) - 1, clipped to [-1, 1], where d_2 and d_98 are
quantiles of the frame's known depths (2 % and 98 %: Marigold's choice; DepthFM's are not published).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from frames import Frame

SKY_RULES = ("mask", "far")


@dataclass(frozen=True)
class DepthNormalization:
    """How metric depth becomes the depth map that the model learns.

    Every pixel is one of three kinds, and this is what becomes of it:

    - known: a finite positive depth, not beyond `cap`, not sky. Normalised; the quantiles are taken over these only.
    - sky: marked as sky by the data, or deeper than `cap`. y = 1; trained on if `sky` is `"far"`.
    - hole: everything else (0, negative or not finite). y = 1, never trained on.

    Attributes:
        low: Quantile that becomes -1, in [0, 1).
        high: Quantile that becomes 1, in (`low`, 1].
        cap: Metres; deeper pixels are treated as sky. `None`: no limit.
        sky: `"mask"`: sky is left out of the loss, as holes are. `"far"`: the model learns y = 1 there; no geometry is
            asked for (normals), as there is none.

    Raises:
        ValueError: If a field is out of its range.
    """

    low: float = 0.02
    high: float = 0.98
    cap: float | None = None
    sky: str = "mask"

    def __post_init__(self) -> None:
        """Checks the fields."""
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"The depth quantiles must satisfy 0 <= low < high <= 1, got {self.low} and {self.high}.")
        if self.cap is not None and not 0.0 < self.cap < math.inf:
            raise ValueError(f"The depth cap must be a positive number of metres or None, got {self.cap}.")
        if self.sky not in SKY_RULES:
            raise ValueError(f"The rule for sky must be one of {SKY_RULES}, got {self.sky!r}.")


@dataclass(frozen=True)
class NormalizedDepth:
    """A frame's normalised log depth and what is needed to undo it.

    Attributes:
        values: 1×H×W, float32 in [-1, 1]; 1 (far) wherever the depth is not known.
        valid: 1×H×W, bool; where the values are trained on: known depth, and sky under the rule `"far"`.
        known: 1×H×W, bool; where there is a depth, and so a geometry. Part of `valid`.
        log_near: log of the low quantile, log metres.
        log_far: log of the high quantile, log metres; equal to `log_near` for a frame of zero range.
    """

    values: torch.Tensor
    valid: torch.Tensor
    known: torch.Tensor
    log_near: float
    log_far: float

    @property
    def has_range(self) -> bool:
        """False for a frame without known depth, or with a single one: its values are 1 everywhere."""
        return self.log_far > self.log_near


def normalize_log_depth(
    depth: torch.Tensor,
    normalization: DepthNormalization | None = None,
    sky: torch.Tensor | None = None,
) -> NormalizedDepth:
    """Normalises metric depth; for the formula see the module, for sky and holes `DepthNormalization`.

    Args:
        depth: 1×H×W in metres; not known where it is 0, negative or not finite.
        normalization: Quantiles, cap and rule for sky; `None` is `DepthNormalization()`.
        sky: 1×H×W, bool, wins over `depth`; `None` if no pixel is marked as sky.

    Raises:
        ValueError: If `sky` is not of the shape of `depth`, or not bool.
    """
    config = normalization or DepthNormalization()
    positive = torch.isfinite(depth) & (depth > 0)
    if sky is None:
        sky = torch.zeros_like(positive)
    elif sky.shape != depth.shape or sky.dtype != torch.bool:
        raise ValueError(
            f"`sky` must be bool of the depth's shape {tuple(depth.shape)}, got {sky.dtype} of {tuple(sky.shape)}."
        )
    if config.cap is not None:
        sky = sky | (positive & (depth > config.cap))
    known = positive & ~sky
    valid = known | sky if config.sky == "far" else known

    ones = torch.ones_like(depth, dtype=torch.float32)
    if not known.any():
        return NormalizedDepth(ones, valid, known, 0.0, 0.0)
    log_depth = torch.log(torch.where(known, depth, ones))
    # NumPy: torch.quantile refuses more than 2**24 values.
    log_near, log_far = (float(q) for q in np.quantile(log_depth[known].numpy(), (config.low, config.high)))
    if not log_far > log_near:
        return NormalizedDepth(ones, valid, known, log_near, log_near)
    values = (2 * (log_depth - log_near) / (log_far - log_near) - 1).clamp(-1, 1)
    return NormalizedDepth(torch.where(known, values, ones), valid, known, log_near, log_far)


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
        intrinsics: 3×3, float32, pixels, as `depthfm_diffusers.geometry` defines them; NaN where the camera is not
            known.
        sky: 1×H×W, bool; where the data say that there is sky.
    """

    image: torch.Tensor
    depth: torch.Tensor
    intrinsics: torch.Tensor
    sky: torch.Tensor


def frame_to_view(frame: Frame) -> View:
    """The frame as it is, as tensors."""
    image = torch.from_numpy(frame.image.copy()).permute(2, 0, 1).float() / 255
    depth = torch.from_numpy(frame.depth.copy())[None]
    if frame.intrinsics is None:
        intrinsics = torch.full((3, 3), math.nan)
    else:
        intrinsics = torch.from_numpy(frame.intrinsics.copy())
    sky = torch.zeros_like(depth, dtype=torch.bool) if frame.sky is None else torch.from_numpy(frame.sky.copy())[None]
    return View(image, depth, intrinsics, sky)


def augment_view(view: View, config: AugmentationConfig, rng: np.random.Generator) -> View:
    """Random crop (resized back), mirror and colour change; depth is resized without mixing neighbours.

    A crop keeps planar depth as it is and changes the intrinsics; a mirror moves the principal point. Intrinsics that
    are not known stay so. What is drawn from `rng` depends on the view's size and the ranges alone.
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
    # Pixel centres are integers: the image's edge, which stays where it is, is half a pixel outside.
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
