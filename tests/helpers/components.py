"""Tiny random components of the real classes, never mocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

if TYPE_CHECKING:
    from depthfm_diffusers import ImageEncoder

DATA = Path(__file__).parents[1] / "data"


def build_unet(seed: int = 0, **changes: object) -> UNet2DConditionModel:
    """A random UNet of DepthFM's layout: 8 input channels, 4 output channels, two levels unless `changes` say else."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def build_vae(seed: int = 0, **changes: object) -> AutoencoderKL:
    """A random 8x autoencoder with 4 latent channels, 4 levels as Stable Diffusion's."""
    torch.manual_seed(seed)
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**{**config, **changes}).eval()


def build_components(seed: int = 0) -> dict[str, object]:
    """All components of a `DepthFMPipeline`, tiny and random."""
    from depthfm_diffusers import FlowMatchingImageToDepthScheduler, PromptEmbedding

    torch.manual_seed(seed)
    prompt_embedding = PromptEmbedding(num_tokens=4, dim=16)
    torch.nn.init.normal_(next(prompt_embedding.parameters()))
    return {
        "unet": build_unet(seed),
        "vae": build_vae(seed),
        "scheduler": FlowMatchingImageToDepthScheduler(),
        "prompt_embedding": prompt_embedding.eval(),
    }


def build_image_encoder(seed: int = 0, out_channels: int = 5) -> ImageEncoder:
    """A random image encoder with a narrow trunk of one block per stage, whose normalisation is not trivial."""
    from depthfm_diffusers import ImageEncoder

    torch.manual_seed(seed)
    encoder = ImageEncoder(
        out_channels, block_out_channels=(4, 4, 8, 8, 12, 12, 16), layers_per_block=(1,) * 7, stem_channels=4
    )
    for name, tensor in encoder.trunk.state_dict().items():
        if ".norm." in name:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return encoder.eval()
