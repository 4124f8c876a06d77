"""Tiny random Stable Diffusions with ControlNets, real components of both layouts, and DepthFM pipelines on them."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from helpers.components import build_components
from helpers.stable_diffusion import build_stable_diffusion
from PIL import Image, ImageDraw

from depthfm_diffusers import (
    DepthFMControlNetImg2ImgPipeline,
    DepthFMControlNetInpaintPipeline,
    DepthFMControlNetPipeline,
    DepthFMPipeline,
)

# Each of this package's pipelines, and the one of diffusers that it must equal.
COUNTERPARTS = {
    DepthFMControlNetPipeline: StableDiffusionControlNetPipeline,
    DepthFMControlNetImg2ImgPipeline: StableDiffusionControlNetImg2ImgPipeline,
    DepthFMControlNetInpaintPipeline: StableDiffusionControlNetInpaintPipeline,
}
PIPELINES = list(COUNTERPARTS)
PREDICTION_TYPES = {"1.5": "epsilon", "2.1": "v_prediction"}
STEPS = {"num_inference_steps": 2, "output_type": "np"}


def build_controlnet(unet: UNet2DConditionModel, seed: int = 3, effective: bool = True) -> ControlNetModel:
    """A ControlNet for `unet`; `effective` gives its zero convolutions random weights, so that it does something."""
    torch.manual_seed(seed)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8)).eval()
    if effective:
        for name, parameter in controlnet.named_parameters():
            if "controlnet" in name or "conv_out" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return controlnet


@cache
def _stable_diffusion(layout: str) -> StableDiffusionPipeline:
    with TemporaryDirectory() as folder:
        pipe = build_stable_diffusion(Path(folder) / "model", layout, PREDICTION_TYPES[layout])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_stable_diffusion_pipeline(layout: str = "1.5") -> StableDiffusionPipeline:
    """A tiny `StableDiffusionPipeline`, quiet, with modules of its own."""
    return deepcopy(_stable_diffusion(layout))


def build_depth_estimator() -> DepthFMPipeline:
    """A tiny `DepthFMPipeline` with defaults that are not the class's."""
    return DepthFMPipeline(**build_components(), default_num_inference_steps=1, default_processing_resolution=48)


def build_pipelines(
    cls: type = DepthFMControlNetPipeline, layout: str = "1.5", controlnets: int = 1
) -> tuple[DiffusionPipeline, DiffusionPipeline]:
    """A pipeline of this package and its counterpart of diffusers on the same modules, each with its scheduler."""
    stable = build_stable_diffusion_pipeline(layout)
    nets = [build_controlnet(stable.unet, seed=3 + i) for i in range(controlnets)]
    controlnet = nets if controlnets > 1 else nets[0]
    pipe = cls.from_pipelines(stable, build_depth_estimator(), controlnet=controlnet)
    components = {**stable.components, "controlnet": pipe.controlnet}
    components["scheduler"] = DDIMScheduler.from_config(stable.scheduler.config)
    counterpart = COUNTERPARTS[cls](**components, requires_safety_checker=False)
    for one in (pipe, counterpart):
        one.set_progress_bar_config(disable=True)
    return pipe, counterpart


def build_image(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth RGB picture of `size` (width, height)."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32)
    channels = [np.sin(x / 7 + seed), np.cos(y / 5 - seed), np.sin((x + y) / 11 + 2 * seed)]
    return Image.fromarray(np.stack([(c * 127 + 128).astype(np.uint8) for c in channels], axis=-1))


def build_mask(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A mask with a white rectangle in the middle."""
    mask = Image.new("L", size)
    width, height = size
    ImageDraw.Draw(mask).rectangle([width // 4, height // 4, width // 2, height // 2], fill=255)
    return mask


def start_arguments(cls: type, images: object = None) -> dict[str, object]:
    """What `cls` needs beside the prompt: an image, and for inpainting its mask."""
    images = build_image() if images is None else images
    return {"image": images} | ({"mask_image": build_mask()} if cls is DepthFMControlNetInpaintPipeline else {})


def diffusers_arguments(cls: type, control: object, images: object = None) -> dict[str, object]:
    """The same for the counterpart of diffusers, with the control image where that takes it."""
    if cls is DepthFMControlNetPipeline:
        return {"image": control}
    return {**start_arguments(cls, images), "control_image": control}


def seeded(seed: int = 0) -> torch.Generator:
    """A generator for one call."""
    return torch.Generator().manual_seed(seed)
