"""Validation of the small autoencoder on held-out frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL

from ..data.autoencoder_data import image_and_depth
from ..data.sources import MixedFrames
from ..networks.autoencoder import downsampling
from .validation import Validation, picture_grid


def validate_autoencoder(
    vae: AutoencoderKL, frames: MixedFrames, scored: Sequence[int], shown: Sequence[int]
) -> Validation:
    """Encodes and decodes held-out frames: mean L1 of images and depth maps; a picture of inputs and results.

    Args:
        vae: As it is now.
        frames: All frames.
        scored: Frames that are scored.
        shown: Those of them that are in the picture.
    """
    rows, errors = [], []
    for index in scored:
        pixels = image_and_depth(frames[index], downsampling(vae)).to(vae.device)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        errors.append((decoded - pixels).abs().mean(dim=(1, 2, 3)))
        if index in shown:
            rows.append([*pixels, *decoded])
    image_l1, depth_l1 = torch.stack(errors).mean(0).tolist()
    return Validation({"image_l1": image_l1, "depth_l1": depth_l1}, "validation", picture_grid(rows))
