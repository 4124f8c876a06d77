"""The flow-matching objective of DepthFM: from a batch to its loss.

Path x_t = (1 - t) x_0 + t x_1 from the noise-augmented image latent x_0 (t = 0) to the depth latent x_1 (t = 1);
the UNet sees cat[x_t, c], c the clean image latent, and regresses the velocity x_1 - x_0 (arXiv 2403.13788, eq. 4-6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ...depth_normalization import denormalize_log_depth
from ...geometry import depth_to_normals
from ...schedulers.scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler
from ..data.flow_data import FEATURES

# Decoded values are clamped to ± this before their exponential is taken. True values lie in [-1, 1]; an untrained
# network's estimates can lie far outside and would overflow. Clamped values get no gradient from this loss, only from
# the others.
MAX_DECODED = 2.0
GRADIENT_SCALES = 4


@dataclass(frozen=True)
class FlowState:
    """A point on the path, and the network's prediction there.

    Attributes:
        time: B, the flow time.
        sample: B×C×h×w, x_t.
        velocity: B×C×h×w, predicted.
        target_velocity: B×C×h×w, x_1 - x_0.
    """

    time: torch.Tensor
    sample: torch.Tensor
    velocity: torch.Tensor
    target_velocity: torch.Tensor

    @property
    def target_estimate(self) -> torch.Tensor:
        """x̂_1 = x_t + (1 - t) v, B×C×h×w."""
        return self.sample + (1 - self.time).view(-1, 1, 1, 1) * self.velocity


def predict_velocity(
    unet: torch.nn.Module,
    scheduler: FlowMatchingImageToDepthScheduler,
    embedding: torch.Tensor,
    batch: dict[str, torch.Tensor],
    sigma_min: float = 0.0,
) -> FlowState:
    """Evaluates the network on the path of each sample.

    With `sigma_min` the path is smoothed: x_t = (1 - t) x_0 + t x_1 + sigma_min ε', with another noise ε'. The
    conditional velocity is still x_1 - x_0, because ε' does not depend on t (conditional flow matching, arXiv
    2302.00482). The estimate of x_1 contains that noise.

    Args:
        unet: UNet of 2·C input and C output channels; or with an image encoder, an `EncoderUNet`.
        scheduler: Gives the source, the path and the velocity.
        embedding: 1×tokens×dim, the constant cross-attention input.
        batch: `image_latent`, `depth_latent`, `noise` (each B×C×h×w), `time` (B) and, with `sigma_min`, `path_noise`
            (B×C×h×w); for an `EncoderUNet` also `feature_seed` (B) and the encoder's features or `image` (B×3×H×W).
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
        **encoder_inputs(batch),
        return_dict=False,
    )[0]
    return FlowState(time, sample, velocity.float(), scheduler.get_velocity(source, target))


def encoder_inputs(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Returns what an `EncoderUNet` takes beside the UNet's input; nothing for batches without `feature_seed`."""
    if "feature_seed" not in batch:
        return {}
    features = [batch[name] for name in FEATURES if name in batch]
    return {"seeds": batch["feature_seed"], "image_or_features": features or batch["image"]}


def data_loss(state: FlowState, weight: torch.Tensor) -> torch.Tensor:
    """Returns the velocity's mean squared error, cells weighted by `weight` (B×1×h×w); 0 if no cell is valid."""
    squared = (state.velocity - state.target_velocity).square().mean(dim=1, keepdim=True)
    return (weight * squared).sum() / weight.sum().clamp_min(1e-6)


def has_intrinsics(intrinsics: torch.Tensor) -> torch.Tensor:
    """Returns which samples have a known camera: B×3×3 to B, bool. Unknown intrinsics are NaN."""
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
    """Computes losses on the decoded estimate x̂_1, on a part of the batch.

    Decoded are the first ceil(`fraction` B) samples, in the batch's order, that qualify: t >= `min_time` (early
    estimates are blurred means with meaningless normals), a depth range, and a known camera if the normals are the
    only loss. No random numbers are needed, because the batch is in random order.

    The gradient flows through the decoder, which must be frozen and must not run under `no_grad`. Each sample is
    decoded separately, under gradient checkpointing, so that the activations of one sample are held at a time. One
    checkpoint for the whole batch would need, when it is recomputed, as much memory as none.

    Args:
        state: From `predict_velocity`.
        decode_depth: `DepthFMPipeline.decode_depth`: latents B×C×h×w to log depth B×1×H×W.
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
    # 0.28 × 25 is a little more than 7 in floating point: the small difference keeps it at 7.
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
    """Returns the mean cosine distance between the surface normals of a decoded estimate and the true ones.

    A pixel counts if its 3×3 neighbourhood (at the image's border, the part inside the image) is known, because a
    normal depends on the neighbours' depth. Samples with an unknown camera do not count.

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
    """Returns the multi-scale gradient matching loss of MiDaS (arXiv 1907.01341): edges as in the truth.

    With the residual R = `values` - `target`: the mean magnitude of the differences between horizontal neighbours of
    R, plus that between vertical ones, over pairs of valid pixels, summed over `GRADIENT_SCALES` scales. Each scale
    keeps every second pixel of the one before, without averaging, which would mix depths across edges.

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
