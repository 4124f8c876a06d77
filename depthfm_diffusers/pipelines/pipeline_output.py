"""Outputs of the pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

T = TypeVar("T")
Maps: TypeAlias = np.ndarray | torch.Tensor | list[np.ndarray | None] | list[torch.Tensor | None]


@dataclass
class DepthFMOutput(BaseOutput):
    """Output of `DepthFMPipeline`.

    N images of one size give one array N×H×W×C (`output_type="np"`) or one tensor N×C×H×W (`"pt"`); images of several
    sizes give a list of N arrays H×W×C or tensors C×H×W, so `field[i]` means the same in both cases. H×W is the
    input's size, or with `match_input_resolution=False` the processing size (longer side `processing_resolution`). All
    maps are float32. With `output_type="pil"`, `prediction` is a list of images, the other maps are as for `"np"`.
    After an interruption (`pipe._interrupt = True` in a callback), images that were not begun have `None` in lists.

    Args:
        prediction: Affine-invariant depth in [0, 1], C = 1: 0 is the nearest point of that image, 1 the farthest; a
            constant map is 0. It is exp(log depth), min-max normalised per image. `"pil"`: 16-bit greyscale images
            (mode `I;16`), round(65535 × depth). `"latent"`: the latents, as in `latent`; all other fields are `None`.
        log_depth: The network's raw log depth, C = 1, about [-1, 1] and not clipped: 2·(log d - log d_near) /
            (log d_far - log d_near) - 1 with unknown d_near and d_far. Mean over the ensemble.
        uncertainty: Standard deviation over the ensemble after aligning its members by scale and shift, C = 1, in
            units of `log_depth`. Computed at the processing size, then resized. `None` unless asked for.
        normals: Unit normals facing the camera, C = 3, OpenCV axes (x right, y down, z forward), of the surface
            exp(log_depth) at its resolution. Approximate: the depth is known up to an unknown power and factor only,
            and the field of view is the one given to the call. `None` unless asked for.
        latent: Predicted latents at t = 1, one per image × ensemble member: float32 N·E×C×h×w on the pipeline's
            device, or a list of N tensors E×C×h×w for images of several sizes. Not what the call's `latents` take,
            which is noise. `None` unless asked for.
    """

    prediction: Maps | list[Image.Image | None] | None
    log_depth: Maps | None = None
    uncertainty: Maps | None = None
    normals: Maps | None = None
    latent: torch.Tensor | list[torch.Tensor | None] | None = None


@dataclass(frozen=True)
class CompletionFit:
    """How a completion came about, for one image.

    Attributes:
        a: Scale of the network's log depth y, in log d = a·y + b; the mean over the ensemble.
        b: Shift, log metres; likewise.
        points: Number of known pixels.
        optimization_steps: Steps in which the latent was optimised.
        left_out_error: Mean absolute error of known points predicted from the others, in log metres: about the
            relative error between the points. `None` without a correction.
        wrong_points: Number of points that contradict the others, of those that were interpolated between; likewise.
        uses_prediction: Whether the prediction's values were used, or only its edges, because they do not fit.
    """

    a: float
    b: float
    points: int
    optimization_steps: int
    left_out_error: float | None
    wrong_points: int | None
    uses_prediction: bool


@dataclass
class DepthFMDepthCompletionOutput(BaseOutput):
    """Output of `DepthFMDepthCompletionPipeline`.

    Maps of several images are put together as in `DepthFMOutput`.

    Args:
        depth: Dense depth along the optical axis in metres (the unit of the known depth), float32, C = 1, of the size
            of the image.
        uncertainty: Standard deviation of the error of `depth`, in metres, C = 1: of the interpolation between the
            points, scaled by how well they predict each other, and of the members of the ensemble. Small at points,
            larger far from them and behind edges; 0 at values that were kept.
        fits: Of each image, how it was fitted.
    """

    depth: Maps | None
    uncertainty: Maps | None
    fits: list[CompletionFit]


def collect_maps(maps: Sequence[torch.Tensor | None], one_size: bool, output_type: str) -> Maps | None:
    """Puts maps together as `DepthFMOutput` describes.

    Args:
        maps: 1×C×H×W each; `None` for an image that has none.
        one_size: Whether those of one image are stacked with those of the next.
        output_type: `"pt"` for tensors, anything else for arrays.

    Returns:
        The maps; `None` if there are none.
    """
    if all(one is None for one in maps):
        return None
    if output_type == "pt":
        return torch.cat(_all(maps)) if one_size else [None if one is None else one[0] for one in maps]
    arrays = [None if one is None else one[0].permute(1, 2, 0).cpu().numpy() for one in maps]
    return np.stack(_all(arrays)) if one_size else arrays


def collect_latents(
    latents: Sequence[torch.Tensor | None], one_size: bool
) -> torch.Tensor | list[torch.Tensor | None] | None:
    """Puts the latents of images together as `DepthFMOutput` describes.

    Args:
        latents: E×C×h×w each; `None` for an image that has none.
        one_size: Whether those of one image are stacked with those of the next.

    Returns:
        The latents; `None` if there are none.
    """
    if all(one is None for one in latents):
        return None
    return torch.cat(_all(latents)) if one_size else list(latents)


def _all(values: Sequence[T | None]) -> list[T]:
    """Narrows the type: images of one size all have maps, or none has."""
    return [value for value in values if value is not None]
