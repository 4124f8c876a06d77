"""The flow-matching objective of DepthFM: from a batch to its loss.

Path x_t = (1 - t) x_0 + t x_1 from the noise-augmented image latent x_0 (t = 0) to the depth latent x_1 (t = 1);
the UNet sees cat[x_t, c], c the clean image latent, and regresses the velocity x_1 - x_0 (arXiv 2403.13788, eq. 4-6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ...schedulers.scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler
from ..data.flow_data import FEATURES


@dataclass(frozen=True)
class FlowState:
    """A point on the path, and the network's prediction there.

    Attributes:
        time: B, the flow time.
        sample: B×C×h×w, x_t.
        velocity: B×C×h×w, predicted.
        target_velocity: B×C×h×w, x_1 - x_0.
        decoded: N×1×H×W, the decoded estimate x̂_1 of the samples that were asked for; `None` if none were.
    """

    time: torch.Tensor
    sample: torch.Tensor
    velocity: torch.Tensor
    target_velocity: torch.Tensor
    decoded: torch.Tensor | None = None

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
    decoded_rows: torch.Tensor | None = None,
) -> FlowState:
    """Evaluates the network on the path of each sample.

    With `sigma_min` the path is smoothed: x_t = (1 - t) x_0 + t x_1 + sigma_min ε', with another noise ε'. The
    conditional velocity is still x_1 - x_0, because ε' does not depend on t (conditional flow matching, arXiv
    2302.00482). The estimate of x_1 contains that noise.

    Args:
        unet: UNet of 2·C input and C output channels, and those of partial depth if the batch has them; with an image
            encoder, an `EncoderUNet`; either may be in a `DecodingUNet`.
        scheduler: Gives the source, the path and the velocity.
        embedding: 1×tokens×dim, the constant cross-attention input.
        batch: `image_latent`, `depth_latent`, `noise` (each B×C×h×w), `time` (B) and, with `sigma_min`, `path_noise`
            (B×C×h×w); for an `EncoderUNet` also `feature_seed` (B) and the encoder's features or `image` (B×3×H×W);
            for completion `completion_channels` (B×(C + 2)×h×w).
        sigma_min: Standard deviation of the smoothing, in units of scaled latents; at least 0.
        decoded_rows: N, which samples a `DecodingUNet` decodes.

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
    rows = {} if decoded_rows is None else {"decoded_rows": decoded_rows}
    further = [batch["completion_channels"]] if "completion_channels" in batch else []
    velocity, *decoded = unet(
        torch.cat([sample, condition, *further], dim=1),
        time * scheduler.config.timestep_scale,
        embedding.expand(len(time), -1, -1),
        **encoder_inputs(batch),
        **rows,
        return_dict=False,
    )
    return FlowState(time, sample, velocity.float(), scheduler.get_velocity(source, target), *decoded)


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
