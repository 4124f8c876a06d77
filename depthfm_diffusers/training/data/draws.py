"""What is drawn for each training sample besides its augmentation: time, noise, whether its prompt is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

TIMESTEP_SAMPLINGS = ("uniform", "logit_normal")


class Draws(Protocol):
    """Draws what an objective needs for each sample."""

    def draw(self, rng: np.random.Generator, latent_size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Draws for one sample whose latent has this height and width."""


@dataclass(frozen=True)
class TimeDistribution:
    """Distribution of the flow time t in training.

    Attributes:
        name: `"uniform"` on [0, 1), or `"logit_normal"`: sigmoid of a Gaussian (arXiv 2403.03206, section 3.1).
        mean: Mean of the Gaussian; a negative one prefers times near the image, where few-step inference evaluates.
        std: Standard deviation of the Gaussian.
        start_share: Share of the samples at exactly t = 0; the others follow `name`. Depth latents are smooth: from
            t = 0.2 on, averaging x_t over neighbours already reveals the target, so that a small network learns to
            read the image at t = 0 almost alone (measured in model_cards/depthfm-tiny.md).
    """

    name: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    start_share: float = 0.0

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.name not in TIMESTEP_SAMPLINGS:
            raise ValueError(f"The distribution of t must be one of {TIMESTEP_SAMPLINGS}, got {self.name!r}.")
        if not self.std > 0:
            raise ValueError(f"The standard deviation of logit t must be positive, got {self.std}.")
        if not 0.0 <= self.start_share <= 1.0:
            raise ValueError(f"The share of t = 0 must be in [0, 1], got {self.start_share}.")

    def sample(self, rng: np.random.Generator) -> float:
        """Draws one t in [0, 1)."""
        if rng.random() < self.start_share:
            return 0.0
        if self.name == "uniform":
            return float(rng.random())
        return 1 / (1 + math.exp(-float(rng.normal(self.mean, self.std))))


@dataclass(frozen=True)
class FlowDraws:
    """Draws for the flow: its time and Gaussian noise.

    Attributes:
        times: Distribution of t.
        latent_channels: Channels of the noise.
        path_noise: Whether noise for the smoothing of the path (sigma_min > 0) is drawn too.
        feature_seed: Whether a seed for the noise of the image encoder's features is drawn too.
        completion_seed: Whether a seed for what is simulated of partial depth is drawn too.
    """

    times: TimeDistribution
    latent_channels: int
    path_noise: bool = False
    feature_seed: bool = False
    completion_seed: bool = False

    def draw(self, rng: np.random.Generator, latent_size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns `time` (scalar), `noise` and, if asked for, `path_noise` (C×h×w each), and seeds (integers)."""
        drawn = {"time": torch.tensor(self.times.sample(rng))}
        for name in ("noise", "path_noise") if self.path_noise else ("noise",):
            drawn[name] = gaussian(rng, (self.latent_channels, *latent_size))
        for name, asked in (("feature_seed", self.feature_seed), ("completion_seed", self.completion_seed)):
            if asked:
                drawn[name] = torch.tensor(int(rng.integers(2**63)))
        return drawn


@dataclass(frozen=True)
class DiffusionDraws:
    """Draws for a diffusion model: the noise level, Gaussian noise, and whether the prompt is left out.

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
        noise = gaussian(rng, (self.latent_channels, *latent_size))
        return {
            "timestep": torch.tensor(int(rng.integers(self.num_train_timesteps))),
            "noise": noise,
            "without_prompt": torch.tensor(bool(rng.random() < self.empty_prompt_share)),
        }


def gaussian(rng: np.random.Generator, shape: Sequence[int]) -> torch.Tensor:
    """Draws standard Gaussian noise, float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
