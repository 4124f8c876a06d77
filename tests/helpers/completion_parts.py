"""Models that take partial depth, and points for them."""

from __future__ import annotations

import numpy as np
import torch
from helpers.components import build_components, build_image_encoder, build_unet

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.training.networks.base_model import prepare_completion


def build_pipeline(features: int = 0, completion: bool = True) -> DepthFMPipeline:
    """A tiny random pipeline, quiet; with completion, its UNet is one without that has grown."""
    parts = build_components() | {"unet": build_unet(in_channels=8 + features)}
    if features:
        parts["image_encoder"] = build_image_encoder(out_channels=features)
    pipe = DepthFMPipeline(**parts, default_processing_resolution=64)
    pipe.set_progress_bar_config(disable=True)
    prepare_completion(pipe, completion, lora=False)
    return pipe


def let_points_matter(pipe: DepthFMPipeline) -> None:
    """Gives the new channels weights, as training does."""
    torch.manual_seed(1)
    with torch.no_grad():
        pipe.unet.conv_in.weight[:, 8:14].normal_(std=0.1)


def sparse(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Depth in metres at a twentieth of the pixels, 1×H×W, 0 elsewhere."""
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.uniform(0, 1, (1, height, width)))
    return torch.from_numpy(np.where(rng.random(depth.shape) < 0.05, depth, 0).astype(np.float32))
