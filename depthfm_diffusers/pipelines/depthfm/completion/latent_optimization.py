"""Optimisation of the output latent against known points, through the decoder only.

The flow is not run again: its result is the start, and what the decoder can make of a latent is the prior. Points that
are set aside tell when to stop.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.nn import functional

from ....image_processing import unpad
from .affine_fit import fit_log_affine

LEARNING_RATE, LEARNING_RATE_AFFINE = 0.1, 0.01
# Errors of log depth beyond this count linearly: a wrong point does not pull harder the more wrong it is.
HUBER_WIDTH = 0.05
# Weight of the smoothness of what is added to the prediction, and the difference of colours that lets it jump.
SMOOTHNESS, EDGE_COLOUR = 0.1, 0.1
# Share of the points that are set aside. With fewer points than this nothing can be set aside, or optimised.
SET_ASIDE, FEWEST_POINTS = 0.2, 10
PATIENCE = 5


@dataclass(frozen=True)
class OptimizedLatents:
    """Result of an optimisation.

    Attributes:
        log_depth: E×1×PH×PW, the decoded log depth of the members, float32.
        steps: Steps that were made.
    """

    log_depth: torch.Tensor
    steps: int


class PointReader:
    """Reads maps at the known pixels of an image of another size, as bilinear resizing would give them.

    Args:
        known: H×W, bool.
        padding: Rows and columns of padding of the maps.
    """

    def __init__(self, known: torch.Tensor, padding: tuple[int, int]) -> None:
        rows, columns = known.nonzero().T
        height, width = known.shape
        self._grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)[None, None]
        self._padding = padding

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        """Reads maps E×1×PH×PW at the N known pixels: E×N."""
        grid = self._grid.expand(len(maps), -1, -1, -1)
        values = functional.grid_sample(unpad(maps, self._padding), grid, padding_mode="border", align_corners=False)
        return values[:, 0, 0]


def float_autoencoder(vae: AutoencoderKL | AutoencoderTiny) -> AutoencoderKL | AutoencoderTiny:
    """Returns an autoencoder for gradients: a copy in float32 if it is in half precision, where they underflow."""
    if vae.dtype == torch.float32:
        return vae
    return remove_hook_from_module(copy.deepcopy(vae), recurse=True).float()


def optimize_latents(
    latents: torch.Tensor,
    decode: Callable[[torch.Tensor], torch.Tensor],
    read: Callable[[torch.Tensor], torch.Tensor],
    known: torch.Tensor,
    image: torch.Tensor,
    steps: int,
    deadline: float | None,
    on_step: Callable[[], object],
) -> OptimizedLatents:
    """Optimises latents, and a pair (a, b) for each, so that the decoded maps fit known depths.

    Args:
        latents: E×C×h×w, the flow's result for each member.
        decode: Decodes them to log depth, E×1×PH×PW, differentiably.
        read: Reads such maps at the N known points, E×N.
        known: N, log metres.
        image: 1×3×PH×PW, the image at the size of the maps, in [-1, 1].
        steps: Steps of Adam at most; 0 only decodes.
        deadline: `time.monotonic()` after which no step is begun.
        on_step: Called after each step.

    Returns:
        Of each member the map with the smallest error at the points that were set aside.
    """
    with torch.no_grad():
        first = decode(latents)
    if steps == 0 or len(known) < FEWEST_POINTS:
        return OptimizedLatents(first, 0)
    count = len(known)
    # Other points for each member, but always the same: the result depends on the noise of the flow only.
    order = torch.rand(len(latents), count, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    is_aside = order.to(known.device) < max(1, round(SET_ASIDE * count))
    start = read(first)
    fits = [fit_log_affine(*(x[~aside] for x in (y, known))) for y, aside in zip(start, is_aside, strict=True)]
    latents = latents.clone().requires_grad_()
    affine = torch.tensor(fits, device=known.device).requires_grad_()
    groups: list[dict[str, Any]] = [{"params": [latents]}, {"params": [affine], "lr": LEARNING_RATE_AFFINE}]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
    across, down = (_edge_weights(image, dim) for dim in (-1, -2))
    best, best_errors = first, torch.full((len(latents),), torch.inf, device=known.device)
    last_gain = made = 0
    for step in range(steps + 1):
        with torch.enable_grad():
            maps = decode(latents)
            errors = affine[:, :1] * read(maps) + affine[:, 1:] - known
            loss = functional.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=HUBER_WIDTH)
            loss = (loss * ~is_aside).sum() / (~is_aside[0]).sum() / HUBER_WIDTH
            added = maps - first
            for weights, dim in ((across, -1), (down, -2)):
                loss = loss + SMOOTHNESS * (weights * added.diff(dim=dim).abs()).mean() * len(latents)
        with torch.no_grad():
            aside_errors = torch.stack([e[aside].abs().median() for e, aside in zip(errors, is_aside, strict=True)])
            better = aside_errors < best_errors
            best = torch.where(better[:, None, None, None], maps, best)
            best_errors = torch.where(better, aside_errors, best_errors)
        last_gain = step if bool(better.any()) else last_gain
        is_late = deadline is not None and time.monotonic() >= deadline
        if step == steps or is_late or step - last_gain >= PATIENCE:
            break
        latents.grad, affine.grad = torch.autograd.grad(loss, [latents, affine])
        optimizer.step()
        made += 1
        on_step()
    return OptimizedLatents(best.detach(), made)


def _edge_weights(image: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns weights 1×1×PH×PW, one less along `dim`: 1 where the image is flat, small across its edges."""
    return torch.exp(-image.diff(dim=dim).abs().mean(dim=1, keepdim=True) / (2 * EDGE_COLOUR))
