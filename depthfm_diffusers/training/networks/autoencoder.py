"""The small autoencoder that has one latent space for images and depth maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from diffusers import AutoencoderKL

from ...frames import Frame
from ..data.autoencoder_data import image_and_depth

LATENT_CHANNELS = 4


def build_autoencoder(
    pretrained: str | None, block_out_channels: Sequence[int], layers_per_block: int, norm_num_groups: int
) -> AutoencoderKL:
    """Loads an autoencoder, or builds a new one.

    Args:
        pretrained: Folder of an `AutoencoderKL`; `None`: a new one of these widths.
        block_out_channels: Widths.
        layers_per_block: Residual blocks per level.
        norm_num_groups: Groups of the normalisation.
    """
    if pretrained is not None:
        return AutoencoderKL.from_pretrained(pretrained)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=norm_num_groups,
        # Convolutions only: what is learnt on crops holds at any size.
        mid_block_add_attention=False,
    )


def downsampling(vae: AutoencoderKL) -> int:
    """Returns the pixels per latent cell."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def fit_scaling_factor(vae: AutoencoderKL, frames: Iterable[Frame]) -> None:
    """Sets `scaling_factor` to 1 / (standard deviation of the latents of images and depth maps together)."""
    latents = []
    for frame in frames:
        pixels = image_and_depth(frame, downsampling(vae)).to(vae.device)
        latents.append(vae.encode(pixels).latent_dist.mode().flatten())
    vae.register_to_config(scaling_factor=1.0 / torch.cat(latents).std().item())


class VariationalPass(torch.nn.Module):
    """One pass through encoder, sampled posterior and decoder that also returns the posterior's parameters.

    `AutoencoderKL.forward` returns the reconstruction only, and under data parallelism only `forward` may be called.

    Args:
        vae: The autoencoder.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the reconstruction of `pixels` (B×3×H×W), and the posterior's mean and log variance (B×C×h×w)."""
        posterior = self.vae.encode(pixels).latent_dist
        latent = posterior.mean + posterior.std * noise
        return self.vae.decode(latent).sample, posterior.mean, posterior.logvar
