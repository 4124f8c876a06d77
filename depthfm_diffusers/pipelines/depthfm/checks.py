"""Checks of the pipeline's components, of a call's arguments, and of what the networks return.

Errors name the argument or the component, and what was got: `TypeError` for another type, `ValueError` for a value
that is not acceptable, `RuntimeError` for an output of a network.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from ...image_processing import RESAMPLE_METHODS
from ...models.attention_processor import RescaledSelfAttnProcessor
from ...models.image_encoder import ImageEncoder
from ...models.prompt_embedding import PromptEmbedding
from .further_channels import num_completion_channels


def as_integer(name: str, value: Any, minimum: int) -> int:
    """Makes an `int` of an integer of any library; `name` is what errors call it."""
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None:
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if integer < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {integer}.")
    return integer


def check_components_fit(
    unet: UNet2DConditionModel | None,
    vae: AutoencoderKL | AutoencoderTiny | None,
    prompt_embedding: PromptEmbedding | None,
    image_encoder: ImageEncoder | None,
) -> None:
    """Checks that components, where they are given, fit together."""
    if unet is not None and vae is not None:
        channels, what = 2 * vae.config.latent_channels, "the current latent and the image's latent of the `vae`"
        if image_encoder is not None:
            channels += image_encoder.config.out_channels
            what += f", and {image_encoder.config.out_channels} of the `image_encoder`"
        completing = num_completion_channels(vae)
        if unet.config.in_channels not in (channels, channels + completing):
            raise ValueError(
                f"`unet` must take {channels} channels ({what}), or {completing} more for partial depth, but it takes "
                f"{unet.config.in_channels}."
            )
    if vae is not None and image_encoder is not None and len(vae.config.block_out_channels) != 4:
        raise ValueError(
            "`image_encoder` makes features for latents of 1/8 of the image's size, but those of the `vae` have "
            f"1/{2 ** (len(vae.config.block_out_channels) - 1)}."
        )
    if unet is not None and prompt_embedding is not None:
        # The width may be given per level, and a projection may come before the cross-attention.
        taken = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
        widths = set(taken) if isinstance(taken, (list, tuple)) else {taken}
        if widths != {prompt_embedding.config.dim}:
            raise ValueError(
                f"`prompt_embedding` must have the width of the `unet`'s cross-attention, {taken}, but it has "
                f"{prompt_embedding.config.dim}."
            )


def check_components(components: Mapping[str, Any], optional: Sequence[str], rescale_self_attention: bool) -> None:
    """Checks that a pipeline has all its components, that none was replaced by another kind, and that they fit.

    Those whose names are in `optional` may be `None`.
    """
    missing = [name for name, component in components.items() if component is None and name not in optional]
    if missing:
        raise ValueError(f"The pipeline has no {missing[0]}: set `pipe.{missing[0]}`, or pass it when loading.")
    unet, scheduler = components["unet"], components["scheduler"]
    check_components_fit(unet, components["vae"], components["prompt_embedding"], components.get("image_encoder"))
    if not hasattr(scheduler, "augment"):
        raise ValueError(
            "`scheduler` must be a FlowMatchingImageToDepthScheduler, or have its method `augment` (the source of the "
            f"flow), but it is a {type(scheduler).__name__}."
        )
    processors = unet.attn_processors.values()
    if rescale_self_attention and not any(isinstance(one, RescaledSelfAttnProcessor) for one in processors):
        raise ValueError(
            "The pipeline has `rescale_self_attention=True`, but its UNet's attention processors were replaced "
            "(by another UNet, attention slicing or `set_default_attn_processor`). Call "
            "depthfm_diffusers.models.attention_processor.set_self_attention_rescaling(pipe.unet, True)."
        )


def check_resample_method(name: str, method: Any) -> None:
    """Checks the resampling method that was given as argument `name`."""
    if method not in RESAMPLE_METHODS:
        raise ValueError(f"`{name}` must be one of {RESAMPLE_METHODS}, got {method!r}.")


def check_outputs(
    output_type: str, output_uncertainty: bool, output_normals: bool, ensemble_size: int, fov_x_deg: float
) -> None:
    """Checks what a call is to return, see `DepthFMPipeline.__call__`."""
    if output_type not in ("np", "pt", "pil", "latent"):
        raise ValueError(f"`output_type` must be 'np', 'pt', 'pil' or 'latent', got {output_type!r}.")
    if output_uncertainty and ensemble_size < 2:
        raise ValueError(
            f"`output_uncertainty=True` needs `ensemble_size` of at least 2 (better 5), got {ensemble_size}."
        )
    if output_type == "latent" and (output_uncertainty or output_normals):
        raise ValueError(
            "`output_uncertainty` and `output_normals` need decoded maps: use another `output_type` than 'latent'."
        )
    if output_normals and not 0 < fov_x_deg < 180:
        raise ValueError(f"`fov_x_deg` must be in (0, 180) degrees, got {fov_x_deg!r}.")


def check_generator(generator: Any) -> None:
    """Checks that a source of noise is `None`, a generator, or a list of generators."""
    generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
    for one in generators:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"`generator` must be a torch.Generator or a list of them, got {type(one).__name__}.")


def check_number_of_generators(generator: Any, images: int, ensemble_size: int) -> None:
    """Checks that a list of generators has one for each image and member."""
    if isinstance(generator, list) and len(generator) != images * ensemble_size:
        raise ValueError(
            "`generator` must be one generator, or a list of one per image and ensemble member, "
            f"{images} × {ensemble_size} = {images * ensemble_size}; got {len(generator)}."
        )


def check_callback_tensor_inputs(names: Any, available: Sequence[str]) -> None:
    """Checks the names of the tensors that a callback asks for."""
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        raise TypeError(
            f"`callback_on_step_end_tensor_inputs` must be a list of names among {available}, got {names!r}."
        )
    unknown = [name for name in names or () if name not in available]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` must be among {available}, got {unknown}.")


def returned_tensors(returned: Any) -> dict[str, torch.Tensor]:
    """Returns the dict of tensors that a callback returned."""
    if not isinstance(returned, dict):
        raise TypeError(
            "`callback_on_step_end` must return the dict of tensors that it was given, changed or not; it returned "
            f"{type(returned).__name__}."
        )
    return returned


def check_noise(
    latents: Any, sizes: Sequence[tuple[int, int]], ensemble_size: int, channels: int, scale_factor: int
) -> list[torch.Tensor]:
    """Checks noise that the caller gives for images of latent `sizes`; returns N tensors E×C×h×w, one per image."""
    shapes = [(ensemble_size, channels, *size) for size in sizes]
    if isinstance(latents, torch.Tensor) and len(set(sizes)) == 1:
        expected = (len(sizes) * ensemble_size, *shapes[0][1:])
        if tuple(latents.shape) != expected:
            raise ValueError(
                f"`latents` must have shape {expected} (images × members, channels, and height and width of the "
                f"processed image, each divided by {scale_factor} and rounded up), got {tuple(latents.shape)}."
            )
        latents = latents.split(ensemble_size)
    elif not isinstance(latents, (list, tuple)) or not all(isinstance(x, torch.Tensor) for x in latents):
        raise TypeError(
            "`latents` must be a tensor, or a list of one tensor per image (for images of several sizes it must "
            f"be a list), got {type(latents).__name__}."
        )
    if [tuple(x.shape) for x in latents] != shapes:
        raise ValueError(
            f"`latents` must be a list of tensors of shapes {shapes} (members, channels, and height and width of "
            f"each processed image, divided by {scale_factor} and rounded up), got "
            f"{[tuple(x.shape) for x in latents]}."
        )
    if not all(torch.isfinite(x).all() for x in latents):
        raise ValueError("`latents` hold NaN or infinite values.")
    return list(latents)


def check_latent_size(unet: Any, vae: Any, latent_size: tuple[int, int], original_size: tuple[int, int]) -> None:
    """Checks that no network's group normalisation gets a single value per group, which has no variance.

    That takes a feature map of 1×1 where a level has one channel per group: tiny images in narrow networks.
    """
    unet, vae = unet.config, vae.config
    # Per network: groups, and from where the map has its latent's size, the channels normalised at each halving.
    levels = [unet.block_out_channels[max(0, i - 1) : i + 1] for i in range(len(unet.block_out_channels))]
    for name, groups, widths in (
        ("unet", unet.norm_num_groups, levels),
        ("vae", vae.get("norm_num_groups"), [vae.block_out_channels[-2:]]),
    ):
        if any(max(latent_size) <= 2**level and groups in width for level, width in enumerate(widths)):
            raise ValueError(
                f"An image of {original_size[0]}×{original_size[1]} pixels (height × width) is processed too "
                f"small for the `{name}`, which shrinks it to a single value per group of channels: use a larger "
                "`processing_resolution`."
            )


def check_finite(tensor: torch.Tensor, what: str, component: str, dtype: torch.dtype) -> None:
    """Checks that a network's output is finite; the error says what to do otherwise."""
    if torch.isfinite(tensor).all():
        return
    if dtype == torch.float16:
        advice = (
            "float16 has overflowed, most likely: load the pipeline in bfloat16 (`dtype=torch.bfloat16`), or keep "
            "the autoencoder in float32 (`pipe.vae.to(torch.float32)`)."
        )
    else:
        advice = "The weights may be damaged or not meant for this configuration; float16 is not the cause."
    raise RuntimeError(f"The {what} hold NaN or infinite values (`{component}` runs in {dtype}). {advice}")
