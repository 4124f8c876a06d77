"""The losses on the decoded estimate of a flow's end: which samples are decoded, and what is compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.utils.checkpoint import checkpoint

from .pixel_losses import (
    decoded_limit,
    gradient_matching_loss,
    has_intrinsics,
    l1_loss,
    normals_loss,
    relative_depth_loss,
    scale_shift_invariant_loss,
    windowed_matching_loss,
)


@dataclass(frozen=True)
class DecodedWeights:
    """Weights of the losses, see the functions of `pixel_losses`; 0: the loss is not computed.

    Attributes:
        normals: Of `normals_loss`.
        gradient: Of `gradient_matching_loss`.
        l1: Of `l1_loss`.
        ssi: Of `scale_shift_invariant_loss`.
        relative: Of `relative_depth_loss`.
        matching: Of `windowed_matching_loss`.
    """

    normals: float = 0.0
    gradient: float = 0.0
    l1: float = 0.0
    ssi: float = 0.0
    relative: float = 0.0
    matching: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, weight in asdict(self).items():
            if not 0.0 <= weight < math.inf:
                raise ValueError(f"The weight of `{name}` must be at least 0 and finite, got {weight}.")

    def positive(self) -> dict[str, float]:
        """Returns the weights above 0 by name."""
        return {name: weight for name, weight in asdict(self).items() if weight > 0}


@dataclass(frozen=True)
class DecodedLosses:
    """Losses on the decoded estimate x̂_1, on a part of the batch.

    Decoded are the first ceil(`fraction` B) samples, in the batch's order, that qualify: t >= `min_time` (early
    estimates are blurred means with meaningless normals) or, with `at_start`, t = 0; a depth range; and a known camera
    if the normals are the only loss. No random numbers are needed, because the batch is in random order.

    Attributes:
        weights: Of the losses; one at least is positive.
        fraction: Share of the batch that is decoded at most, in (0, 1].
        min_time: Smallest flow time that is decoded, in [0, 1].
        at_start: Whether samples at t = 0 alone are decoded: there the estimate is the prediction in one step.
        recompute: Whether each sample's activations are computed again in the backward pass, so that those of one
            sample are held at a time. One checkpoint for the whole batch would need as much memory as none.

    Raises:
        ValueError: If no weight is positive, or a number is out of its range.
    """

    weights: DecodedWeights
    fraction: float = 1.0
    min_time: float = 0.0
    at_start: bool = False
    recompute: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.weights.positive():
            raise ValueError("One of the weights of the losses on the decoded estimate must be positive.")
        if not (0.0 < self.fraction <= 1.0 and 0.0 <= self.min_time <= 1.0):
            raise ValueError(
                f"`fraction` must be in (0, 1] and `min_time` in [0, 1], got {self.fraction} and {self.min_time}."
            )

    def choose(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the samples of a batch that are decoded: N, indices.

        Args:
            batch: `time` (B), `bounds` (B×2, log metres), `intrinsics` (B×3×3, pixels, NaN if unknown).
        """
        time, bounds = batch["time"], batch["bounds"]
        usable = (time == 0 if self.at_start else time >= self.min_time) & (bounds[:, 1] > bounds[:, 0])
        if list(self.weights.positive()) == ["normals"]:
            usable = usable & has_intrinsics(batch["intrinsics"])
        # 0.28 × 25 is a little more than 7 in floating point: the small difference keeps it at 7.
        most = math.ceil(self.fraction * len(usable) - 1e-6)
        return usable.nonzero()[:most, 0]

    def decode(self, decode_depth: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
        """Decodes estimates, N×C×h×w to N×1×H×W, one by one with `recompute`; the gradient flows through the decoder.

        Args:
            decode_depth: Latents B×C×h×w to log depth B×1×H×W, see `DepthFMPipeline.decode_depth`.
            latents: At least one.
        """
        if not self.recompute:
            return decode_depth(latents)
        return torch.cat([checkpoint(decode_depth, latent, use_reentrant=False) for latent in latents.split(1)])

    def compute(
        self, values: torch.Tensor | None, batch: dict[str, torch.Tensor], rows: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Computes the losses.

        Args:
            values: N×1×H×W, the decoded estimates of the chosen samples; `None` or empty if none was chosen.
            batch: `bounds` (B×2, log metres), `intrinsics` (B×3×3, pixels, NaN if unknown), `depth` (B×1×H×W, metres),
                `known` and `valid` (B×1×H×W, bool), `depth_map` (B×1×H×W, normalised): see
                `depthfm_diffusers.depth_normalization.NormalizedDepth`. Only what the losses need.
            rows: N, see `choose`.

        Returns:
            `weighted`: the weighted sum, for the total loss; the terms by name, where their weight is positive;
            `decoded_share`: share of the batch that was decoded. Scalars; the same names whatever the batch, and
            terms without a sample to count are 0.
        """
        bounds = batch["bounds"]
        # The sum of no values keeps a trained decoder in the graph, as data parallelism asks for.
        zero = bounds.new_zeros(()) if values is None or len(rows) else values.sum()
        terms = {"weighted": zero, "decoded_share": zero + len(rows) / len(bounds)}
        for name, weight in self.weights.positive().items():
            terms[name] = zero if values is None or len(rows) == 0 else _loss(name, values, batch, rows)
            terms["weighted"] = terms["weighted"] + weight * terms[name]
        return terms


def _loss(name: str, values: torch.Tensor, batch: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    def chosen(*names: str) -> list[torch.Tensor]:
        return [batch[one][rows] for one in names]

    limit = decoded_limit(batch["depth_map"][rows])
    if name == "normals":
        depth, known, bounds, intrinsics = chosen("depth", "known", "bounds", "intrinsics")
        return normals_loss(values, depth, known, bounds, intrinsics, limit)
    if name == "relative":
        depth, valid = chosen("depth", "valid")
        return relative_depth_loss(values, depth, valid & (depth > 0), limit)
    functions = {
        "gradient": gradient_matching_loss,
        "l1": l1_loss,
        "ssi": scale_shift_invariant_loss,
        "matching": windowed_matching_loss,
    }
    return functions[name](values, *chosen("depth_map", "valid"))
