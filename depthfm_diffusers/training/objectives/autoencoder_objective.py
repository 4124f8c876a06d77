"""Data and loss of the small autoencoder that shares one latent space between images and depth maps."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.data import Dataset

from ...depth_normalization import normalize_log_depth
from ...frames import Frame
from ..data.depth_transforms import (
    AugmentationConfig,
    augment_view,
    frame_to_view,
)
from ..data.sampling import sample_rng
from ..data.sources import MixedFrames

LATENT_CHANNELS = 4
DOWNSAMPLING = 8


class AutoencoderViews(Dataset):
    """Augmented square crops, each as the image and as the depth map, both in [-1, 1].

    Args:
        frames: Where the frames come from.
        indices: Which of them are used.
        augmentation: Random changes before the crop.
        crop_size: Side of the square crop, pixels.
        seed: Seed of the run.
    """

    def __init__(
        self, frames: MixedFrames, indices: list[int], augmentation: AugmentationConfig, crop_size: int, seed: int
    ) -> None:
        self.frames = frames
        self.indices = indices
        self.augmentation = augmentation
        self.crop_size = crop_size
        self.seed = seed

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns `pixels`, 2×3×S×S (the image, then the depth map in three equal channels), and `noise`, 2×4×S/8×S/8.

        Raises:
            ValueError: If the crop does not fit into the frame.
        """
        epoch, index = item
        rng = sample_rng(self.seed, epoch, index)
        view = augment_view(frame_to_view(self.frames[self.indices[index]]), self.augmentation, rng)
        # Normalised before the crop: the quantiles are those of the whole map, as in inference.
        depth = normalize_log_depth(view.depth).values
        height, width = depth.shape[-2:]
        size = self.crop_size
        if size > min(height, width):
            raise ValueError(f"--crop_size {size} is larger than a frame of {width}x{height} pixels.")
        top, left = int(rng.integers(0, height - size + 1)), int(rng.integers(0, width - size + 1))
        pixels = torch.stack([view.image * 2 - 1, depth.expand(3, -1, -1)])[..., top : top + size, left : left + size]
        noise = rng.standard_normal((2, LATENT_CHANNELS, size // DOWNSAMPLING, size // DOWNSAMPLING), dtype=np.float32)
        return {"pixels": pixels.contiguous(), "noise": torch.from_numpy(noise)}


def image_and_depth(frame: Frame) -> torch.Tensor:
    """A frame's image and depth map, 2×3×H×W in [-1, 1], cropped to multiples of the autoencoder's factor."""
    view = frame_to_view(frame)
    depth = normalize_log_depth(view.depth).values.expand(3, -1, -1)
    height, width = (side - side % DOWNSAMPLING for side in depth.shape[-2:])
    return torch.stack([view.image * 2 - 1, depth])[..., :height, :width]


class VariationalPass(torch.nn.Module):
    """One pass through encoder, sampled posterior and decoder, with the posterior's parameters kept.

    `AutoencoderKL.forward` returns the reconstruction only, and under data parallelism only `forward` may be called.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the reconstruction of `pixels` (B×3×H×W), and the posterior's mean and log variance."""
        posterior = self.vae.encode(pixels).latent_dist
        latent = posterior.mean + posterior.std * noise
        return self.vae.decode(latent).sample, posterior.mean, posterior.logvar


def autoencoder_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], kl_weight: float, gradient_weight: float
) -> dict[str, torch.Tensor]:
    """L1 of image and depth, L1 of their first differences (edges), and the Kullback-Leibler term.

    Args:
        model: A `VariationalPass`, wrapped or not.
        batch: `pixels`, B×2×3×H×W in [-1, 1] (image, depth map), and `noise`, B×2×4×H/8×W/8.
        kl_weight: Weight of the KL divergence, averaged over the latent's elements.
        gradient_weight: Weight of the differences' L1.

    Returns:
        `loss`, and its terms `image_l1`, `depth_l1`, `gradient_l1`, `kl`.
    """
    pixels = batch["pixels"].flatten(0, 1)
    reconstruction, mean, log_variance = (x.float() for x in model(pixels, batch["noise"].flatten(0, 1)))
    error = reconstruction - pixels
    per_kind = error.abs().unflatten(0, (-1, 2)).mean(dim=(0, 2, 3, 4))
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = per_kind.mean() + gradient_weight * gradient + kl_weight * kl
    return {"loss": loss, "image_l1": per_kind[0], "depth_l1": per_kind[1], "gradient_l1": gradient, "kl": kl}
