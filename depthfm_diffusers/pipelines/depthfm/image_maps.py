"""From decoded latents to the maps of a call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

from ...geometry import depth_to_normals, intrinsics_from_fov
from ...image_processing import ProcessedImage, depth_from_log_depth, resize, unpad
from ..pipeline_output import DepthFMOutput, Maps, collect_latents, collect_maps
from .ensembling import ensemble_log_depth, ensemble_uncertainty


def make_output(
    images: Sequence[ProcessedImage],
    members: Sequence[torch.Tensor | None],
    latents: Sequence[torch.Tensor | None],
    match_input_resolution: bool,
    resample_method_output: str,
    output_type: str,
    output_uncertainty: bool,
    output_latent: bool,
    normals_fov_deg: float | None,
) -> DepthFMOutput:
    """Averages and resizes ensembles in log depth, then makes depth and normals of it.

    Args:
        images: The images, of which the padding and the sizes are read.
        members: Decoded log depth of each image's E members, E×1×PH×PW; `None` for an image that was not begun, and
            for all of them where nothing was decoded.
        latents: The members' latents, E×C×h×w each, or `None`.
        match_input_resolution: Whether maps have the size of the images.
        resample_method_output: Resampling of maps, one of `RESAMPLE_METHODS`.
        output_type: `"np"`, `"pt"`, `"pil"` or `"latent"`.
        output_uncertainty: Whether the spread of the members is returned.
        output_latent: Whether the latents are returned.
        normals_fov_deg: Horizontal field of view in degrees for the normals; `None` if they are not wanted.

    Returns:
        The output.
    """
    log_depths: list[torch.Tensor | None] = []
    uncertainties: list[torch.Tensor | None] = []
    normals: list[torch.Tensor | None] = []
    for image, padded in zip(images, members, strict=True):
        if padded is None:
            for maps in (log_depths, uncertainties, normals):
                maps.append(None)
            continue
        cropped, size = unpad(padded, image.padding), output_size(image, match_input_resolution)
        log_depth = resize(ensemble_log_depth(cropped)[None], size, resample_method_output)
        log_depths.append(log_depth)
        if output_uncertainty:
            # Bicubic interpolation overshoots, and a standard deviation is not negative.
            uncertainty = resize(ensemble_uncertainty(cropped)[None], size, resample_method_output)
            uncertainties.append(uncertainty.clamp_min(0))
        if normals_fov_deg is not None:
            depth = torch.exp(log_depth - log_depth.max())
            normals.append(depth_to_normals(depth, intrinsics_from_fov(normals_fov_deg, *size)))

    one_size = len({image.original_size for image in images}) == 1
    latent = collect_latents(latents, one_size)
    depths = [None if one is None else depth_from_log_depth(one) for one in log_depths]
    prediction: Maps | list[Image.Image | None] | None = collect_maps(depths, one_size, output_type)
    if output_type == "latent":
        prediction = latent
    elif output_type == "pil" and prediction is not None:
        prediction = [None if one is None else _to_pil(one) for one in depths]
    return DepthFMOutput(
        prediction=prediction,
        log_depth=collect_maps(log_depths, one_size, output_type),
        uncertainty=collect_maps(uncertainties, one_size, output_type),
        normals=collect_maps(normals, one_size, output_type),
        latent=latent if output_latent else None,
    )


def output_size(image: ProcessedImage, match_input_resolution: bool) -> tuple[int, int]:
    """Returns the height and width of an image's maps."""
    if match_input_resolution:
        return image.original_size
    return image.pixels.shape[-2] - image.padding[0], image.pixels.shape[-1] - image.padding[1]


def latent_size(image: ProcessedImage, scale_factor: int) -> tuple[int, int]:
    """Returns the height and width of an image's latent."""
    return image.pixels.shape[-2] // scale_factor, image.pixels.shape[-1] // scale_factor


def _to_pil(depth: torch.Tensor) -> Image.Image:
    """Makes a 16-bit greyscale image of a depth map 1×1×H×W in [0, 1]."""
    return Image.fromarray((depth[0, 0] * 65535).round().cpu().numpy().astype(np.uint16))


def decode_log_depth(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Decodes scaled latents (B×C×h×w) to raw log depth, B×1×H×W, float32; see `DepthFMPipeline.decode_depth`."""
    latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    decoded = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return decoded.float().mean(dim=1, keepdim=True)
