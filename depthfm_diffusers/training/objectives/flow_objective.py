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
from torch.utils.checkpoint import checkpoint

from ... import FlowMatchingImageToDepthScheduler
from ...depth_normalization import denormalize_log_depth
from ...geometry import depth_to_normals

TIMESTEP_SAMPLINGS = ("uniform", "logit_normal")
START_DISTRIBUTIONS = ("image", "noise")

# Decoded values are held within this before their exponential is taken: true ones lie in [-1, 1], and an estimate far
# outside, as an untrained network makes it, would overflow. Out there only the other losses pull it back.
MAX_DECODED = 2.0
GRADIENT_SCALES = 4


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


def source_noise_step(start: str, noise_augmentation_step: int, num_train_timesteps: int = 1000) -> int:
    """The scheduler's `noise_augmentation_step` for a start distribution (the ablation of arXiv 2403.13788).

    `"image"` starts from the image's latent with the noise of a step. `"noise"` starts from pure Gaussian noise, which
    is the last step of the cosine schedule: there the signal's weight is 6e-17, below what float32 can add to 1. The
    scheduler's saved configuration says it all: inference from that folder starts in the same way, unchanged.

    Args:
        start: `"image"` or `"noise"`.
        noise_augmentation_step: Step used by `"image"`.
        num_train_timesteps: Last step of the schedule, used by `"noise"`.

    Raises:
        ValueError: If `start` is neither.
    """
    if start not in START_DISTRIBUTIONS:
        raise ValueError(f"The start distribution must be one of {START_DISTRIBUTIONS}, got {start!r}.")
    return num_train_timesteps if start == "noise" else noise_augmentation_step


def latent_weight(valid: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
    """Brings a mask to latent resolution: B×1×H×W (bool) to B×1×h×w in [0, 1].

    A cell's weight is the share of valid pixels among those it covers. A cell at the rim of a hole, whose code mixes
    depth and filling, counts for less but is not lost: dropping every cell that a hole touches loses far more pixels
    than are invalid where holes are small and many, as those of sensors are.
    """
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
    sigma_min: float = 0.0,
) -> FlowState:
    """Evaluates the network on the path of each sample.

    With `sigma_min` the path is smoothed: x_t = (1 - t) x_0 + t x_1 + sigma_min ε', with a noise ε' of its own. Its
    conditional velocity is x_1 - x_0 all the same, because the noise does not change along the path (conditional flow
    matching, arXiv 2302.00482). The estimate of x_1 keeps that noise.

    Args:
        unet: UNet of 8 input and 4 output channels.
        scheduler: Gives the source, the path and the velocity.
        embedding: 1×tokens×dim, the constant cross-attention input.
        batch: `image_latent`, `depth_latent`, `noise` (each B×4×h×w), `time` (B) and, with `sigma_min`, `path_noise`
            (B×4×h×w).
        sigma_min: Standard deviation of the smoothing, in units of scaled latents; at least 0.

    Raises:
        ValueError: If `sigma_min` is negative or not finite.
    """
    if not 0.0 <= sigma_min < math.inf:
        raise ValueError(f"`sigma_min` must be at least 0 and finite, got {sigma_min}.")
    condition, target, time = batch["image_latent"], batch["depth_latent"], batch["time"]
    source = scheduler.augment(condition, batch["noise"])
    sample = scheduler.interpolate(source, target, time)
    if sigma_min > 0:
        sample = sample + sigma_min * batch["path_noise"]
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


def has_intrinsics(intrinsics: torch.Tensor) -> torch.Tensor:
    """Which samples have a known camera: B×3×3 to B, bool. Unknown intrinsics are NaN."""
    return torch.isfinite(intrinsics).flatten(1).all(dim=1)


def decoded_losses(
    state: FlowState,
    decode_depth: Callable[[torch.Tensor], torch.Tensor],
    batch: dict[str, torch.Tensor],
    normals_weight: float = 0.0,
    gradient_weight: float = 0.0,
    fraction: float = 1.0,
    min_time: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Losses on the depth map that the estimate x̂_1 decodes to, on a part of the batch.

    Decoded are the first ceil(`fraction` B) samples, in the batch's order, of those with t >= `min_time` (early
    estimates are blurred means, whose normals say little), a depth range, and a known camera if the normals alone are
    asked for. The choice needs no random numbers, and a batch that is shuffled makes it fair.

    The gradient flows through the decoder, which must be frozen and must not run under `no_grad`. Each sample is
    decoded on its own, under gradient checkpointing: the decoder's activations are those of one sample at a time,
    where checkpointing the batch as a whole would need as much memory at its recomputation as without.

    Args:
        state: From `predict_velocity`.
        decode_depth: `DepthFMPipeline.decode_depth`: latents B×4×h×w to log depth B×1×H×W.
        batch: `bounds` (B×2, log metres), `intrinsics` (B×3×3, pixels, NaN if unknown); for the normals also `depth`
            (B×1×H×W, metres) and `known` (B×1×H×W, bool), for the gradients `depth_map` (B×1×H×W, normalised) and
            `valid` (B×1×H×W, bool): see `depthfm_diffusers.depth_normalization.NormalizedDepth`.
        normals_weight: Weight of `normals_loss`.
        gradient_weight: Weight of `gradient_matching_loss`.
        fraction: Share of the batch that is decoded at most, in (0, 1].
        min_time: Smallest flow time that is decoded, in [0, 1].

    Returns:
        `weighted`: the weighted sum, for the total loss; `normals` and `gradient`: the terms, where their weight is
        positive; `decoded_share`: share of the batch that was decoded. Scalars; the same names whatever the batch,
        and terms without a sample to count are 0.

    Raises:
        ValueError: If no weight is positive, or a number is out of its range.
    """
    if min(normals_weight, gradient_weight) < 0 or max(normals_weight, gradient_weight) == 0:
        raise ValueError(
            "`normals_weight` and `gradient_weight` must be at least 0 and one of them positive, got "
            f"{normals_weight} and {gradient_weight}."
        )
    if not (0.0 < fraction <= 1.0 and 0.0 <= min_time <= 1.0):
        raise ValueError(f"`fraction` must be in (0, 1] and `min_time` in [0, 1], got {fraction} and {min_time}.")
    usable = (state.time >= min_time) & (batch["bounds"][:, 1] > batch["bounds"][:, 0])
    if gradient_weight == 0:
        usable = usable & has_intrinsics(batch["intrinsics"])
    # The small difference keeps 0.28 × 25, which floats make a little more than 7, at 7.
    most = math.ceil(fraction * len(usable) - 1e-6)
    chosen = usable.nonzero()[:most, 0]

    zero = state.velocity.new_zeros(())
    terms = {"weighted": zero, "decoded_share": zero + len(chosen) / len(usable)}
    if normals_weight > 0:
        terms["normals"] = zero
    if gradient_weight > 0:
        terms["gradient"] = zero
    if len(chosen) == 0:
        return terms
    latents = state.target_estimate[chosen].split(1)
    values = torch.cat([checkpoint(decode_depth, latent, use_reentrant=False) for latent in latents])
    if normals_weight > 0:
        geometry = (batch[name][chosen] for name in ("depth", "known", "bounds", "intrinsics"))
        terms["normals"] = normals_loss(values, *geometry)
        terms["weighted"] = terms["weighted"] + normals_weight * terms["normals"]
    if gradient_weight > 0:
        terms["gradient"] = gradient_matching_loss(values, batch["depth_map"][chosen], batch["valid"][chosen])
        terms["weighted"] = terms["weighted"] + gradient_weight * terms["gradient"]
    return terms


def normals_loss(
    values: torch.Tensor,
    depth: torch.Tensor,
    known: torch.Tensor,
    bounds: torch.Tensor,
    intrinsics: torch.Tensor,
) -> torch.Tensor:
    """Mean cosine distance between the surface normals of a decoded estimate and the true ones.

    A pixel counts if its 3×3 neighbourhood (what there is of it, at the image's border) is known: a normal takes its
    neighbours' depth. Samples of an unknown camera do not count.

    Args:
        values: B×1×H×W, decoded normalised log depth; differentiable within ±`MAX_DECODED`.
        depth: B×1×H×W, true depth in metres; anything where not known.
        known: B×1×H×W, bool.
        bounds: B×2, log of the near and the far quantile that the depth map was normalised with.
        intrinsics: B×3×3, pixels; NaN where unknown.

    Returns:
        Scalar in [0, 2]; 0 if no pixel counts.
    """
    camera = has_intrinsics(intrinsics)[:, None, None]
    # A NaN would reach the sum even with weight 0.
    intrinsics = torch.where(camera, intrinsics, torch.eye(3, device=intrinsics.device))
    known = known & camera[:, None]
    log_near, log_far = (bounds[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    estimate = denormalize_log_depth(values.clamp(-MAX_DECODED, MAX_DECODED), log_near, log_far)
    predicted = depth_to_normals(estimate, intrinsics)
    true = depth_to_normals(torch.where(known, depth, torch.ones_like(depth)), intrinsics)
    inner = 1 - F.max_pool2d(1 - known.float(), kernel_size=3, stride=1, padding=1)
    distance = 1 - (predicted * true).sum(dim=1, keepdim=True)
    return (inner * distance).sum() / inner.sum().clamp_min(1.0)


def gradient_matching_loss(values: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Multi-scale gradient matching of MiDaS (arXiv 1907.01341): edges where the truth has them, and no others.

    The differences between horizontal and between vertical neighbours of the residual R = `values` - `target`: their
    mean magnitudes over the pairs with both pixels valid, added, and summed over `GRADIENT_SCALES` scales, at each of
    which every second pixel of the last is kept (not averaged: that would mix depths across edges).

    Args:
        values: B×1×H×W, decoded normalised log depth.
        target: B×1×H×W, the true one.
        valid: B×1×H×W, bool.

    Returns:
        Scalar; 0 if no pair is valid.
    """
    residual = torch.where(valid, values - target, torch.zeros_like(target))
    total = residual.new_zeros(())
    for scale in range(GRADIENT_SCALES):
        step = 2**scale
        r, v = residual[..., ::step, ::step], valid[..., ::step, ::step]
        pairs_x, pairs_y = v[..., :, 1:] & v[..., :, :-1], v[..., 1:, :] & v[..., :-1, :]
        for difference, pairs in ((r.diff(dim=-1), pairs_x), (r.diff(dim=-2), pairs_y)):
            total = total + (pairs * difference.abs()).sum() / pairs.sum().clamp_min(1)
    return total
