"""Predictions with an uncertainty, by an ensemble or by what is cheaper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..image_processing import depth_from_log_depth, load_picture, process_images, resize, unpad
from ..pipelines.depthfm.ensembling import ensemble_log_depth, ensemble_uncertainty
from ..pipelines.depthfm.image_maps import latent_size
from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from .prediction import Prediction, PredictionSettings, predict_image

UNCERTAINTY_METHODS = ("ensemble", "flip", "steps")


def predict_with_uncertainty(
    pipe: DepthFMPipeline,
    image: Any,
    settings: PredictionSettings,
    method: str = "flip",
    max_pixels: int | None = None,
) -> Prediction:
    """Predicts one image in several ways; the uncertainty is how far they differ.

    | `method` | predictions | cost, of that of one | depth |
    |---|---|---|---|
    | `"ensemble"` | members with other noise, `settings.ensemble_size` of at least 2 | that size | their mean |
    | `"flip"` | of the image and of its mirror image, with mirrored noise | 2 | their mean |
    | `"steps"` | n steps, and 2·n | 3 | that of n steps |

    Args:
        pipe: The pipeline.
        image: As for `predict_image`.
        settings: How each is predicted.
        method: One of `UNCERTAINTY_METHODS`.
        max_pixels: As for `predict_image`.

    Returns:
        The maps, of the size of the image. The uncertainty is the standard deviation of the predictions after they
        are aligned to each other by scale and shift, in units of log depth; see `ensemble_uncertainty`.

    Raises:
        OSError: As `predict_image`.
        TypeError: As `predict_image`.
        ValueError: As `predict_image`; if `method` is unknown, or several images are given.
        RuntimeError: As `predict_image`.
    """
    if method not in UNCERTAINTY_METHODS:
        raise ValueError(f"`method` must be one of {UNCERTAINTY_METHODS}, got {method!r}.")
    settings = settings.resolve(pipe)
    if method == "ensemble":
        return predict_image(pipe, image, settings, output_uncertainty=True, max_pixels=max_pixels)
    if isinstance(image, (str, Path)):
        image = load_picture(image, max_pixels, settings.processing_resolution or 0)
    if method == "flip":
        return _predict_flipped(pipe, image, settings)
    steps = settings.num_inference_steps or 1
    few, many = (predict_image(pipe, image, replace(settings, num_inference_steps=n)) for n in (steps, 2 * steps))
    spread = ensemble_uncertainty(torch.stack([torch.from_numpy(one.log_depth) for one in (few, many)]))
    return replace(few, uncertainty=spread.numpy())


def _predict_flipped(pipe: DepthFMPipeline, image: Any, settings: PredictionSettings) -> Prediction:
    """Predicts an image and its mirror image; see `predict_with_uncertainty`.

    The padded image is mirrored, together with its noise: then the two calls differ in nothing but the direction, and
    every pixel has the same place in a latent pixel.
    """
    images = process_images(image, settings.processing_resolution or 0, "bilinear", pipe.vae_scale_factor)
    if len(images) != 1:
        raise ValueError(f"`image` must be one image, got {len(images)}.")
    (one,) = images
    call = settings.call_arguments() | {"processing_resolution": 0, "output_type": "pt", "return_dict": False}
    size = latent_size(one, pipe.vae_scale_factor)
    (noise,) = pipe.prepare_latents([size], settings.ensemble_size, None, call.pop("generator"))
    both = torch.cat([one.pixels, one.pixels.flip(-1)]) / 2 + 0.5
    _, log_depths, *_ = pipe(both, latents=torch.cat([noise, noise.flip(-1)]), **call)
    members = unpad(torch.cat([log_depths[:1], log_depths[1:].flip(-1)]), one.padding)
    log_depth, spread = (
        resize(of_members(members)[None], one.original_size, "bilinear").cpu()
        for of_members in (ensemble_log_depth, ensemble_uncertainty)
    )
    depth = depth_from_log_depth(log_depth)
    return Prediction(*(maps[0, 0].numpy() for maps in (depth, log_depth, spread)))
