"""The channels of a UNet's input that follow the two latents: what is known of the depth, and the image's features."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from ...models.image_encoder import ImageEncoder

if TYPE_CHECKING:
    from .pipeline_depthfm import DepthFMPipeline


def num_completion_channels(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Returns how many input channels partial depth has: a latent's, the proximity and the share of known pixels."""
    return vae.config.latent_channels + 2


def takes_partial_depth(
    unet: UNet2DConditionModel, vae: AutoencoderKL | AutoencoderTiny, image_encoder: ImageEncoder | None
) -> bool:
    """Returns whether a UNet that fits the other components has input channels for partial depth."""
    features = 0 if image_encoder is None else image_encoder.config.out_channels
    return unet.config.in_channels == 2 * vae.config.latent_channels + num_completion_channels(vae) + features


def encode_partial_depth(encode_image: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """Makes the channels that say what is known of the depth.

    Args:
        encode_image: B×3×H×W in [-1, 1] to latents B×C×h×w, see `DepthFMPipeline.encode_image`.
        maps: B×3×H×W, see `depthfm_diffusers.partial_depth.partial_depth_maps`.

    Returns:
        B×(C + 2)×h×w, float32: the latent of the filled depth map; the proximity and the share of the known pixels,
        both averaged over each latent cell. All of them are 0 for a sample without known points.
    """
    latent = encode_image(maps[:, :1].expand(-1, 3, -1, -1))
    cells = F.adaptive_avg_pool2d(maps[:, 1:], (latent.shape[-2], latent.shape[-1]))
    has_points = maps[:, 2:].flatten(1).any(dim=1)
    return torch.cat([latent * has_points[:, None, None, None], cells], dim=1)


def further_channels(
    pipe: DepthFMPipeline, pixels: torch.Tensor, batch_size: int, partial_depth: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the channels that follow the two latents in the input of a pipeline's UNet; the authors' have none.

    Args:
        pipe: The pipeline.
        pixels: The images, B×3×H×W in [-1, 1], both sides multiples of `vae_scale_factor`.
        batch_size: Number of images that go through a network at once.
        partial_depth: What is known of their depth, B×3×H×W, see `depthfm_diffusers.partial_depth.partial_depth_maps`;
            `None`: nothing.

    Returns:
        B×K×h×w, float32: of a model that takes partial depth, `encode_partial_depth` of it, which is 0 where nothing
        is known; then the features of the image encoder, if there is one. K = 0 without both.
    """
    sides = [side // pipe.vae_scale_factor for side in pixels.shape[-2:]]
    number = num_completion_channels(pipe.vae) if pipe.takes_partial_depth else 0
    channels = [pixels.new_zeros(len(pixels), number, *sides)]
    if number and partial_depth is not None:
        channels = [encode_partial_depth(pipe.encode_image, maps) for maps in partial_depth.split(batch_size)]
        channels = [torch.cat(channels)]
    if pipe.image_encoder is not None:
        channels.append(torch.cat([pipe.image_encoder(batch) for batch in pixels.split(batch_size)]).float())
    return torch.cat(channels, dim=1)
