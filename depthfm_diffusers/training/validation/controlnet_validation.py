"""What a ControlNet makes of held-out images: pictures that should have their depth, and a measure of whether."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import numpy as np
import torch
from accelerate.logging import get_logger
from diffusers import ControlNetModel, StableDiffusionPipeline

from ... import DepthFMControlNetPipeline
from ...evaluation import depth_adherence
from ...frames import CaptionedImage, FrameError
from ...pipelines.depthfm_controlnet.controlnet_noise import depth_generator
from ..data.controlnet_data import (
    DepthControl,
    cover_view,
    image_view,
)
from ..data.sources import MixedFrames
from .depth_validation import picture_grid

logger = get_logger(__name__)


class ControlValidation:
    """Generates images by the depth of held-out ones, and compares their depth.

    Args:
        args: Flags of `train_depth_controlnet.py`.
        base: Stable Diffusion.
        control: Estimates depth, and makes control images.
        images: All images.
        indices: Those to validate on.
        size: Height and width of the training's images.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        base: StableDiffusionPipeline,
        control: DepthControl,
        images: MixedFrames,
        indices: Sequence[int],
        size: tuple[int, int],
    ) -> None:
        self.args = args
        self.base = base
        self.control = control
        self.images = images
        self.indices = indices
        self.size = size

    def run(self, controlnet: ControlNetModel) -> tuple[dict[str, float], np.ndarray]:
        """Generates an image for each held-out one.

        Args:
            controlnet: As it is now.

        Returns:
            Mean scores, see `depth_adherence`; and a picture (H×W×3, uint8) of a row per image: the image, its control
            image, what was generated, and the control image of that.

        Raises:
            ValueError: If no image can be used.
        """
        # As it will be used: in the dtype of the frozen UNet, and without accelerate's `forward`, which makes float32
        # of what the UNet is to add to its own.
        controlnet = copy.deepcopy(controlnet)
        if controlnet.dtype != self.base.unet.dtype:
            controlnet.to(self.base.unet.dtype)
        for name in ("forward", "_original_forward"):
            controlnet.__dict__.pop(name, None)
        pipe = DepthFMControlNetPipeline.from_pipelines(self.base, self.control.estimator, controlnet=controlnet)
        pipe.set_progress_bar_config(disable=True)
        rows, scores = [], []
        for index in self.indices:
            try:
                image = self.images[index]
            except FrameError as error:
                if self.args.bad_frames != "skip":
                    raise
                logger.warning(f"Skipped in validation: {error}")
                continue
            row, score = self._one(pipe, image)
            rows.append(row)
            scores.append(score)
        if not rows:
            raise ValueError("None of the validation images can be used.")
        # A control without edges has no edge score.
        columns = {name: [one[name] for one in scores if not np.isnan(one[name])] for name in scores[0]}
        return {name: float(np.mean(column)) for name, column in columns.items() if column}, picture_grid(rows)

    def _one(
        self, pipe: DepthFMControlNetPipeline, image: CaptionedImage
    ) -> tuple[list[torch.Tensor], dict[str, float]]:
        view = image_view(torch.from_numpy(image.image.copy()).permute(2, 0, 1).float() / 255)
        pixels = cover_view(view, *self.size, np.random.default_rng(0)).image
        log_depth = self._log_depth(pixels)
        output = pipe(
            image.caption,
            log_depth=log_depth,
            control_mode=self.args.control_mode,
            control_percentiles=self.args.control_percentiles,
            num_inference_steps=self.args.validation_inference_steps,
            guidance_scale=self.args.validation_guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
        # The autoencoder is in float32 whatever the rest is in.
        vae = self.base.vae
        decoded = vae.decode(output.images.float() / vae.config.scaling_factor, return_dict=False)[0]
        generated = (decoded[0] * 0.5 + 0.5).clamp(0, 1).cpu()
        found = self._log_depth(generated)
        made = self.control.picture(found)[0]
        row = [tile * 2 - 1 for tile in (pixels, self.control.picture(log_depth)[0], generated, made)]
        return row, depth_adherence(log_depth[0, 0].numpy(), found[0, 0].numpy())

    def _log_depth(self, image: torch.Tensor) -> torch.Tensor:
        """Log depth of an image 3×H×W in [0, 1]: 1×1×H×W, on the CPU; its noise is always the same."""
        generator = depth_generator(torch.Generator().manual_seed(0))
        return self.control.log_depth(image[None], generator=generator).float().cpu()
