"""Output of the ControlNet pipelines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from ..pipeline_output import Maps


@dataclass
class DepthFMControlNetOutput(BaseOutput):
    """Output of the three ControlNet pipelines.

    There are N depth maps and control images, one per image (or given depth map), and as many generated images as
    prompts × images per prompt. Depth maps have the size of their image, and are put together as in `DepthFMOutput`:
    tensors with `output_type="pt"`, else arrays.

    Args:
        images: The generated images as diffusers returns them: a list of PIL images (`output_type="pil"`), an array
            B×H×W×3 in [0, 1] (`"np"`), a tensor B×3×H×W in [0, 1] (`"pt"`), or latents B×C×h×w (`"latent"`).
        nsfw_content_detected: Per generated image, whether the safety checker replaced it by a black one; `None`
            without safety checker.
        depth: Affine-invariant depth in [0, 1] that the images follow: 0 is the nearest point, 1 the farthest. `None`
            if all control images were given.
        log_depth: The log depth that the control images are made of: DepthFM's raw log depth, or the given one. May be
            passed to another call as `log_depth`, instead of predicting it again. `None` as for `depth`.
        control_image: The control images made of it, 8-bit RGB pictures of the depth's size: what diffusers'
            ControlNet pipelines must be given for the same result. `None` as for `depth`.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    nsfw_content_detected: list[bool] | None
    depth: Maps | None = None
    log_depth: Maps | None = None
    control_image: list[Image.Image] | None = None
