"""The flow-matching objective of DepthFM: from a batch to its loss.

Path x_t = (1 - t) x_0 + t x_1 from the noise-augmented image latent x_0 (t = 0) to the depth latent x_1 (t = 1);
the UNet sees cat[x_t, c], c the clean image latent, and regresses the velocity x_1 - x_0 (arXiv 2403.13788, eq. 4-6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from depth_transforms import denormalize_log_depth

from depthfm_diffusers import FlowMatchingImageToDepthScheduler
from depthfm_diffusers.geometry import depth_to_normals

TIMESTEP_SAMPLINGS = ("uniform", "logit_normal")


@dataclass(frozen=True)
class TimeDistribution:
    """Distribution of the flow time t in training.

    Attributes:
        name: `"uniform"` on [0, 1), or `"logit_normal"`: sigmoid of a Gaussian (arXiv 2403.03206, section 3.1).
        mean: Mean of the Gaussian; negative prefers times near the image, where few-step inference evaluates.
        std: Standard deviation of the Gaussian.
        start_share: Share of the samples at exactly t = 0; the others follow `name`. Depth latents are smooth: at
            t = 0.2 already, averaging x_t over neighbours gives the target away, so that hardly anything but t = 0
            teaches a small network to see (model_cards/depthfm-tiny.md has the measurement).
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


def latent_weight(valid: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
    """Share of valid pixels under each latent cell: B×1×H×W (bool) to B×1×h×w in [0, 1]."""
    return F.adaptive_avg_pool2d(valid.float(), latent_size)


@dataclass(frozen=True)
class FlowState:
    """A point on the path, and what the network said there.

    Attributes:
        time: B, the flow time.
        sample: B×4×h×w, x_t.
        velocity: B×4×h×w, predicted.
        target_velocity: B×4×h×w, x_1 - x_0.
    """

    time: torch.Tensor
    sample: torch.Tensor
    velocity: torch.Tensor
    target_velocity: torch.Tensor

    @property
    def target_estimate(self) -> torch.Tensor:
        """x̂_1 = x_t + (1 - t) v, B×4×h×w."""
        return self.sample + (1 - self.time).view(-1, 1, 1, 1) * self.velocity


def predict_velocity(
    unet: torch.nn.Module,
    scheduler: FlowMatchingImageToDepthScheduler,
    embedding: torch.Tensor,
    batch: dict[str, torch.Tensor],
) -> FlowState:
    """Evaluates the network on the path of each sample.

    Args:
        unet: UNet of 8 input and 4 output channels.
        scheduler: Gives the source, the path and the velocity.
        embedding: 1×tokens×dim, the constant cross-attention input.
        batch: `image_latent`, `depth_latent`, `noise` (each B×4×h×w) and `time` (B).
    """
    condition, target, time = batch["image_latent"], batch["depth_latent"], batch["time"]
    source = scheduler.augment(condition, batch["noise"])
    sample = scheduler.interpolate(source, target, time)
    velocity = unet(
        torch.cat([sample, condition], dim=1),
        time * scheduler.config.timestep_scale,
        embedding.expand(len(time), -1, -1),
        return_dict=False,
    )[0]
    return FlowState(time, sample, velocity.float(), scheduler.get_velocity(source, target))


def data_loss(state: FlowState, weight: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the velocity over the cells' weights (B×1×h×w); 0 if nothing in the batch is valid."""
    squared = (state.velocity - state.target_velocity).square().mean(dim=1, keepdim=True)
    return (weight * squared).sum() / weight.sum().clamp_min(1e-6)


def normals_loss(
    state: FlowState,
    decode_depth: Callable[[torch.Tensor], torch.Tensor],
    depth: torch.Tensor,
    valid: torch.Tensor,
    bounds: torch.Tensor,
    intrinsics: torch.Tensor,
) -> torch.Tensor:
    """Mean cosine distance between the surface normals of the decoded estimate and the true ones.

    The gradient flows through the frozen decoder, which must not run under `no_grad`.

    Args:
        state: From `predict_velocity`.
        decode_depth: `DepthFMPipeline.decode_depth`: latents B×4×h×w to log depth B×1×H×W; its autoencoder is frozen.
        depth: B×1×H×W, true depth in metres; anything where not valid.
        valid: B×1×H×W, bool.
        bounds: B×2, log of the near and the far quantile that the depth map was normalised with.
        intrinsics: B×3×3, pixels.

    Returns:
        Scalar in [0, 2]; 0 if no pixel has a fully valid 3×3 neighbourhood.
    """
    values = decode_depth(state.target_estimate)
    log_near, log_far = (bounds[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    predicted = depth_to_normals(denormalize_log_depth(values, log_near, log_far), intrinsics)
    true = depth_to_normals(torch.where(valid, depth, torch.ones_like(depth)), intrinsics)
    # A normal takes its neighbours' depth: one invalid neighbour spoils it.
    inner = 1 - F.max_pool2d(1 - valid.float(), kernel_size=3, stride=1, padding=1)
    distance = 1 - (predicted * true).sum(dim=1, keepdim=True)
    return (inner * distance).sum() / inner.sum().clamp_min(1.0)
