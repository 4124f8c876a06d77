"""The small autoencoder that has one latent space for images and depth maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from diffusers import AutoencoderKL

from ...frames import Frame
from ..data.autoencoder_data import image_and_depth

LATENT_CHANNELS = 4
WIDTHS = (16, 32, 64, 128)  # of a new autoencoder


def build_autoencoder(
    pretrained: str | None, block_out_channels: Sequence[int] | None, layers_per_block: int, norm_num_groups: int
) -> AutoencoderKL:
    """Loads an autoencoder, or builds a new one, or one of other widths from a trained one.

    Args:
        pretrained: Folder of an `AutoencoderKL`; `None`: random weights.
        block_out_channels: Widths; `None`: those of `pretrained`, or `WIDTHS`. With other widths than those of
            `pretrained` the leading channels of its weights are taken, and the channels it lacks are random.
        layers_per_block: Residual blocks per level, if it is new.
        norm_num_groups: Groups of the normalisation, if it is new.

    Raises:
        ValueError: If `pretrained` has another number of levels than `block_out_channels`.
    """
    source = None if pretrained is None else AutoencoderKL.from_pretrained(pretrained)
    if source is None:
        widths = tuple(block_out_channels or WIDTHS)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=layers_per_block,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=norm_num_groups,
            # Convolutions only: what is learnt on crops holds at any size.
            mid_block_add_attention=False,
        )
    levels = len(source.config.block_out_channels)
    if block_out_channels is None or tuple(block_out_channels) == tuple(source.config.block_out_channels):
        return source
    if len(block_out_channels) != levels:
        raise ValueError(
            f"--block_out_channels: {len(block_out_channels)} widths, but {pretrained} has {levels} levels."
        )
    vae = AutoencoderKL.from_config(source.config, block_out_channels=tuple(block_out_channels))
    take_leading_channels(source, vae)
    return vae


@torch.no_grad()
def take_leading_channels(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copies the weights of a network into one of other widths: of every tensor, the part that both have.

    Args:
        source: Trained.
        target: Of the same layers; changed in place. A layer that only one of the two has (a projection of a skip
            connection, where widths change) is left out.
    """
    weights = source.state_dict()
    for name, tensor in target.state_dict().items():
        if name in weights:
            part = tuple(slice(min(sides)) for sides in zip(tensor.shape, weights[name].shape, strict=True))
            tensor[part] = weights[name][part]


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
