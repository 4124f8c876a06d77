"""Validation of depth completion: simulated points in, metres out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...image_processing import process_images, resize
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...pipelines.depthfm.trained_completion import predict_completed
from ..data.depth_transforms import frame_to_view
from ..data.partial_depth import focal_length, simulate_points
from ..data.sources import MixedFrames
from .validation import read_frames

COMPLETION_STEPS = 1


def score_completion(
    pipe: DepthFMPipeline,
    frames: MixedFrames,
    indices: Sequence[int],
    processing_resolution: int = 0,
    skip_bad_frames: bool = False,
) -> dict[str, float]:
    """Scores the completion of simulated partial depth, always with the same points and noise for a frame.

    Args:
        pipe: Of a model that takes partial depth.
        frames: All frames.
        indices: Which of them are scored; those without any depth are left out. The points of the n-th are simulated
            from the seed n.
        processing_resolution: Longer side at which depth is predicted, pixels; 0: the frame's own size.
        skip_bad_frames: Whether a frame that cannot be used is left out, instead of an error.

    Returns:
        Means over frames: `completion_mae`, the mean absolute error in metres, and `completion_abs_rel`, both where
        the true depth is known. Nothing is aligned. Empty if no frame has depth.
    """
    errors = []
    for number, frame in enumerate(read_frames(frames, indices, skip_bad_frames)):
        view = frame_to_view(frame)
        depth = view.depth
        valid = depth > 0
        if not valid.any():
            continue
        rng = np.random.default_rng(number)
        points = torch.from_numpy(simulate_points(depth[0].numpy(), focal_length(view.intrinsics, depth), rng))[None]
        (image,) = process_images(view.image[None], processing_resolution, "bilinear", pipe.vae_scale_factor)
        size = (side // pipe.vae_scale_factor for side in image.pixels.shape[-2:])
        noise = torch.randn(1, pipe.vae.config.latent_channels, *size, generator=torch.Generator().manual_seed(0))
        log_depth = predict_completed(pipe, image, points, noise.to(pipe.device), COMPLETION_STEPS)
        error = (resize(log_depth, image.original_size, "bilinear")[0].cpu().exp() - depth).abs()[valid]
        errors.append((error.mean().item(), (error / depth[valid]).mean().item()))
    if not errors:
        return {}
    mae, abs_rel = np.mean(errors, axis=0)
    return {"completion_mae": float(mae), "completion_abs_rel": float(abs_rel)}
