"""Loss of the small autoencoder that has one latent space for images and depth maps."""

from __future__ import annotations

import torch


def autoencoder_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], kl_weight: float, gradient_weight: float
) -> dict[str, torch.Tensor]:
    """Adds the L1 of image and depth, the L1 of their first differences (edges), and the Kullback-Leibler divergence.

    Args:
        model: A `VariationalPass`, wrapped or not.
        batch: `pixels`, B×2×3×H×W in [-1, 1] (image, depth map), and `noise`, B×2×C×h×w.
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
