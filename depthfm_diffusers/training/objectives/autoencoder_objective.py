"""Loss of the small autoencoder that has one latent space for images and depth maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .pixel_losses import windowed_matching_loss


@dataclass(frozen=True)
class AutoencoderWeights:
    """What counts how much in `autoencoder_loss`.

    Attributes:
        kl: Weight of the Kullback-Leibler divergence, averaged over the latent's elements.
        gradient: Weight of the L1 of first differences.
        image: Weight of an image's L1 where that of a depth map is 1.
        matching: Weight of `windowed_matching_loss` on the depth maps.
        image_share: Share of a batch's images that are reconstructed beside all of its depth maps, in (0, 1]. The
            decoder of a depth model never decodes an image: its images only keep the latents informative.
    """

    kl: float
    gradient: float
    image: float = 1.0
    matching: float = 0.0
    image_share: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("kl", "gradient", "image", "matching"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"The weight `{name}` must be at least 0 and finite, got {getattr(self, name)}.")
        if not 0.0 < self.image_share <= 1.0:
            raise ValueError(f"`image_share` must be in (0, 1], got {self.image_share}.")


def autoencoder_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], weights: AutoencoderWeights
) -> dict[str, torch.Tensor]:
    """Adds the L1 of images and depth maps, losses that want edges, and the Kullback-Leibler divergence.

    Args:
        model: A `VariationalPass`, wrapped or not.
        batch: `pixels`, B×2×3×H×W in [-1, 1] (image, depth map), and `noise`, B×2×C×h×w.
        weights: What counts how much.

    Returns:
        `loss`, and its terms `image_l1`, `depth_l1`, `gradient_l1`, `kl` and, with a weight, `matching`.
    """
    size = len(batch["pixels"])
    used = torch.ones(size, 2, dtype=torch.bool)
    used[math.ceil(weights.image_share * size - 1e-6) :, 0] = False
    is_depth = torch.tensor([False, True]).expand(size, 2)[used]
    pixels = batch["pixels"][used]
    reconstruction, mean, log_variance = (x.float() for x in model(pixels, batch["noise"][used]))
    error = reconstruction - pixels
    l1 = error.abs().mean(dim=(1, 2, 3))
    image_l1, depth_l1 = l1[~is_depth].mean(), l1[is_depth].mean()
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = (weights.image * image_l1 + depth_l1) / 2 + weights.gradient * gradient + weights.kl * kl
    terms = {"image_l1": image_l1, "depth_l1": depth_l1, "gradient_l1": gradient, "kl": kl}
    if weights.matching > 0:
        decoded = reconstruction[is_depth].mean(dim=1, keepdim=True)
        truth = pixels[is_depth][:, :1]
        terms["matching"] = windowed_matching_loss(decoded, truth, torch.ones_like(truth, dtype=torch.bool))
        loss = loss + weights.matching * terms["matching"]
    return {"loss": loss} | terms
