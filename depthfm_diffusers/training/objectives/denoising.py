"""The objective of diffusion models: what a denoiser predicts at a random noise level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler


def denoising_loss(
    schedule: DDPMScheduler,
    batch: dict[str, torch.Tensor],
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Returns the denoiser's mean squared error (arXiv 2006.11239, eq. 14; for v: arXiv 2202.00512, appendix D).

    Args:
        schedule: Noise levels; its `prediction_type` says what the model predicts: the noise, v or the sample.
        batch: `image_latent` and `noise` (B×C×h×w), `timestep` (B), `weight` (B): samples of weight 0 do not count.
        predict: From noisy latents (B×C×h×w) and timesteps (B) to the model's output.

    Returns:
        A scalar, float32; 0 if no sample counts.
    """
    latent, noise, timestep = batch["image_latent"], batch["noise"], batch["timestep"]
    target = {
        "epsilon": lambda: noise,
        "v_prediction": lambda: schedule.get_velocity(latent, noise, timestep),
        "sample": lambda: latent,
    }[schedule.config.prediction_type]()
    prediction = predict(schedule.add_noise(latent, noise, timestep), timestep)
    errors = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
    weight = batch["weight"]
    return (errors * weight).sum() / weight.sum().clamp_min(1.0)
