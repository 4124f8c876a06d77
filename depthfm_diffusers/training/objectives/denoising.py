"""The objective of diffusion models: what a denoiser is asked for at a random noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class DiffusionDraws:
    """What is drawn for each sample: the noise level, Gaussian noise, and whether its prompt is left out.

    Attributes:
        num_train_timesteps: Number of noise levels, all equally likely.
        latent_channels: Channels of the noise.
        empty_prompt_share: Probability that the empty prompt takes the place of the caption.
    """

    num_train_timesteps: int
    latent_channels: int
    empty_prompt_share: float = 0.0

    def draw(self, rng: np.random.Generator, latent_size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns `timestep` (scalar, int64), `noise` (C×h×w) and `without_prompt` (scalar, bool)."""
        noise = rng.standard_normal((self.latent_channels, *latent_size), dtype=np.float32)
        return {
            "timestep": torch.tensor(int(rng.integers(self.num_train_timesteps))),
            "noise": torch.from_numpy(noise),
            "without_prompt": torch.tensor(bool(rng.random() < self.empty_prompt_share)),
        }


def denoising_loss(
    schedule: DDPMScheduler,
    batch: dict[str, torch.Tensor],
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Mean squared error of the denoiser's output (arXiv 2006.11239, eq. 14; for v: arXiv 2202.00512, appendix D).

    Args:
        schedule: Noise levels, and what the model predicts: the noise, v or the sample.
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
