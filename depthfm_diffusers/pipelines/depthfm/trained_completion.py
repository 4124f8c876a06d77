"""Depth completion by a network that takes partial depth: from an image and points to metres."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ...image_processing import ProcessedImage, unpad
from ...partial_depth import move_points, partial_depth_maps, point_bounds
from .further_channels import further_channels
from .pipeline_depthfm import DepthFMPipeline


@torch.no_grad()
def flow_with_points(
    pipe: DepthFMPipeline,
    image: ProcessedImage,
    points: torch.Tensor,
    noise: torch.Tensor,
    num_inference_steps: int,
    batch_size: int = 1,
    on_evaluation: Callable[[], object] = lambda: None,
) -> tuple[torch.Tensor, tuple[float, float]]:
    """Carries the latents of an image to its depth map, with what is known of the depth as a condition.

    Args:
        pipe: Of a model that takes partial depth.
        image: The image.
        points: 1×H×W, metres; not known where it is 0, negative or not finite; of the image's original size.
        noise: Gaussian noise of the source, E×C×h×w, one per ensemble member, float32.
        num_inference_steps: Steps of the solver.
        batch_size: Number of members that go through a network at once.
        on_evaluation: Called after each evaluation of the UNet, for progress.

    Returns:
        Latents at t = 1, E×C×h×w, float32; and the pair (a, b) that makes metres of what they decode to, y:
        log d = a y + b, as `depthfm_diffusers.partial_depth` defines it.

    Raises:
        ValueError: If the model does not take partial depth, no point is known, or the sizes differ.
        RuntimeError: If the call was interrupted at once.
    """
    if not pipe.takes_partial_depth:
        raise ValueError("The model was not trained for depth completion: its UNet has no channels for partial depth.")
    if tuple(points.shape) != (1, *image.original_size):
        raise ValueError(
            f"`points` must have the image's size, {(1, *image.original_size)}, got {tuple(points.shape)}."
        )
    pixels = image.pixels.to(noise.device)
    bottom, right = image.padding
    moved = move_points(points, (pixels.shape[-2] - bottom, pixels.shape[-1] - right)).to(noise.device)
    log_near, log_far = point_bounds(moved)
    maps = partial_depth_maps(F.pad(moved, (0, right, 0, bottom)), (log_near, log_far), pipe.vae_scale_factor)
    channels = further_channels(pipe, pixels, batch_size, maps[None])
    embedding = pipe.prompt_embedding(1).to(noise.device)
    with pipe._new_call(num_inference_steps * pipe.scheduler.order):
        latents = pipe.denoise(
            pipe.encode_image(pixels).expand_as(noise),
            noise,
            embedding,
            num_inference_steps,
            batch_size,
            on_evaluation,
            further_channels=channels.expand(len(noise), -1, -1, -1),
        )
    if latents is None:
        raise RuntimeError("The call was interrupted before the first evaluation of the network.")
    return latents, ((log_far - log_near) / 2, (log_far + log_near) / 2)


@torch.no_grad()
def predict_completed(
    pipe: DepthFMPipeline, image: ProcessedImage, points: torch.Tensor, noise: torch.Tensor, num_inference_steps: int
) -> torch.Tensor:
    """Predicts the depth of an image of which some is known, without any correction at the points.

    Args:
        pipe: See `flow_with_points`.
        image: Likewise.
        points: Likewise.
        noise: Likewise.
        num_inference_steps: Likewise.

    Returns:
        Log depth in log metres, E×1×H×W, float32, of the size at which the image is processed, without padding.
    """
    latents, (a, b) = flow_with_points(pipe, image, points, noise, num_inference_steps)
    values = torch.cat([pipe.decode_depth(one) for one in latents.split(1)])
    return a * unpad(values, image.padding) + b
