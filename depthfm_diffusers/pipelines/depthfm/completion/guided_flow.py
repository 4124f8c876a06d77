"""The guided flow: known points steer each step of the solver, by the gradient through UNet and decoder.

This is the algorithm of [Marigold-DC](https://arxiv.org/abs/2412.13389) (Viola et al. 2024), carried over from
diffusion to the flow: the latent, a scale and a shift are updated by Adam at each step, before the solver moves on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch

from ....schedulers.scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler

# Marigold-DC's own.
LEARNING_RATE, LEARNING_RATE_AFFINE = 0.05, 0.005


def guide_flow(
    scheduler: FlowMatchingImageToDepthScheduler,
    image_latents: torch.Tensor,
    noise: torch.Tensor,
    predict_velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    read: Callable[[torch.Tensor], torch.Tensor],
    known: torch.Tensor,
    steps: int,
    deadline: float | None,
    on_step: Callable[[], object],
) -> tuple[torch.Tensor, tuple[float, float]]:
    """Carries a latent from the image to its depth map, past known depths.

    Args:
        scheduler: A solver of one evaluation per step; it is copied.
        image_latents: 1×C×h×w.
        noise: Gaussian noise of the source, 1×C×h×w.
        predict_velocity: Evaluates the UNet for a latent and a time, differentiably.
        read: Decodes a latent to log depth and reads it at the N points, 1×N, differentiably.
        known: N, log metres.
        steps: Steps of the solver.
        deadline: `time.monotonic()` after which the rest of the flow is not guided.
        on_step: Called after each step.

    Returns:
        The latent at t = 1, 1×C×h×w, and the pair (a, b) that the flow was guided with.

    Raises:
        ValueError: If the solver makes several evaluations per step.
    """
    if scheduler.order != 1:
        raise ValueError("`guided_flow=True` needs a solver of one evaluation per step: solver_type='euler'.")
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(steps, device=image_latents.device)
    lowest, span = known.min(), (known.max() - known.min()).clamp_min(1e-3)
    latents = scheduler.augment(image_latents, noise).requires_grad_()
    # As squares, both stay positive.
    scale, shift = (torch.ones(1, device=known.device, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam(
        [{"params": [scale, shift], "lr": LEARNING_RATE_AFFINE}, {"params": [latents], "lr": LEARNING_RATE}]
    )
    for t in scheduler.timesteps:
        if deadline is None or time.monotonic() < deadline:
            with torch.enable_grad():
                velocity = predict_velocity(latents, t)
                depth = (read(latents + (1 - t) * velocity)[0] + 1) / 2  # about [0, 1], as Marigold's
                error = scale.square() * span * depth + shift.square() * lowest - known
                loss = error.abs().mean() + error.square().mean()
            gradients = torch.autograd.grad(loss, [latents, scale, shift])
            with torch.no_grad():
                # Where Marigold-DC takes the norm of the noise, the other end of the path: here, the source.
                source = latents - t * velocity
                latents.grad = gradients[0] * (source.norm() / gradients[0].norm().clamp_min(1e-8))
                scale.grad, shift.grad = gradients[1:]
            optimizer.step()
        else:
            with torch.no_grad():
                velocity = predict_velocity(latents, t)
        with torch.no_grad():
            latents.copy_(scheduler.step(velocity.detach(), t, latents.detach(), return_dict=False)[0])
        on_step()
    a = float(scale.square() * span / 2)
    return latents.detach(), (a, float(shift.square() * lowest) + a)
