"""Checks of a call that diffusers' ControlNet pipelines make too late, or never.

"Too late" means after a network has run: depth is estimated before diffusers' own loop starts. `arguments` are those
of diffusers' `__call__`. Errors name the argument and what was got: `TypeError` for another type, else `ValueError`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from ..depthfm.checks import as_integer, check_generator

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def count_prompts(arguments: Mapping[str, Any]) -> int:
    """Returns the number of prompts, texts or embeddings; 1 if there is neither, which diffusers refuses."""
    prompt, prompt_embeds = arguments["prompt"], arguments["prompt_embeds"]
    if isinstance(prompt, list):
        return len(prompt)
    return 1 if prompt_embeds is None else len(prompt_embeds)


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Checks the numbers of a call, each by itself."""
    for name in ("num_inference_steps", "num_images_per_prompt"):
        as_integer(name, arguments[name], 1)
    for name in ("height", "width", "padding_mask_crop"):
        if arguments.get(name) is not None:
            as_integer(name, arguments[name], 0)
    strength = arguments.get("strength", 1.0)
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be in (0, 1], got {strength!r}.")
    if int(arguments["num_inference_steps"] * strength) < 1:
        raise ValueError(
            f"`strength` × `num_inference_steps` must be at least 1, or there is no step to take: got {strength} × "
            f"{arguments['num_inference_steps']}."
        )


def check_options(arguments: Mapping[str, Any], scheduler: Any) -> None:
    """Checks what is chosen by name, and what depends on the scheduler."""
    if arguments["output_type"] not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {arguments['output_type']!r}.")
    schedules = [name for name in ("timesteps", "sigmas") if arguments.get(name) is not None]
    if len(schedules) > 1:
        raise ValueError("Pass `timesteps` or `sigmas`, not both.")
    for name in schedules:
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(f"`{name}` cannot be given: {type(scheduler).__name__} has {name} of its own only.")


def check_crop(arguments: Mapping[str, Any]) -> None:
    """Checks what diffusers needs to crop around a mask, and does not check itself."""
    if arguments.get("padding_mask_crop") is None:
        return
    if not isinstance(arguments["image"], Image.Image):
        raise ValueError(
            f"`padding_mask_crop` needs one PIL image as `image`, got {type(arguments['image']).__name__}."
        )
    if arguments["mask_image"].convert("L").getbbox() is None:
        raise ValueError("`padding_mask_crop` needs a mask with something to repaint, but `mask_image` is black.")


def check_prompts(arguments: Mapping[str, Any], components: Mapping[str, Any]) -> None:
    """Checks that prompts, as texts or as embeddings, can be used with the components, and with each other."""
    prompt, negative = arguments["prompt"], arguments["negative_prompt"]
    num_prompts, guided = count_prompts(arguments), arguments["guidance_scale"] > 1
    if num_prompts < 1:
        raise ValueError("`prompt` is empty: pass at least one prompt, which may be ''.")
    for name, texts in (("prompt", prompt), ("negative_prompt", negative)):
        if isinstance(texts, list) and not all(isinstance(text, str) for text in texts):
            raise TypeError(f"`{name}` must hold texts only, got {texts!r}.")
    has_texts = prompt is not None or (guided and arguments["negative_prompt_embeds"] is None)
    missing = [name for name in ("text_encoder", "tokenizer") if components[name] is None]
    if has_texts and missing:
        raise ValueError(
            f"The pipeline has no {missing[0]}: set `pipe.{missing[0]}`, or pass `prompt_embeds` and "
            "`negative_prompt_embeds` (the latter is not needed with `guidance_scale=1.0`)."
        )
    # Without guidance, diffusers ignores what is negative.
    if guided and negative is not None and prompt is not None and type(negative) is not type(prompt):
        raise TypeError(
            f"`negative_prompt` must be of the type of `prompt`, {type(prompt).__name__}, got "
            f"{type(negative).__name__}."
        )
    if guided and isinstance(negative, list) and len(negative) != num_prompts:
        raise ValueError(
            f"`negative_prompt` must hold one negative prompt per prompt: there are {num_prompts} prompts, but "
            f"{len(negative)} negative ones."
        )
    width = text_width(components["unet"])
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        embeddings = arguments[name]
        if embeddings is None:
            continue
        if embeddings.ndim != 3 or len(embeddings) != num_prompts or embeddings.shape[-1] != width:
            raise ValueError(
                f"`{name}` must have the width {width} that the `unet` attends to, and be prompts×tokens×width = "
                f"{num_prompts}×tokens×{width}, got {tuple(embeddings.shape)}."
            )


def check_generators(arguments: Mapping[str, Any], num_prompts: int) -> None:
    """Checks the sources of noise and their number."""
    per_prompt, generator = arguments["num_images_per_prompt"], arguments["generator"]
    check_generator(generator)
    if isinstance(generator, list) and len(generator) != num_prompts * per_prompt:
        raise ValueError(
            "`generator` must be one generator, or one per generated image: "
            f"{num_prompts} prompts × {per_prompt} images = {num_prompts * per_prompt}; got {len(generator)}."
        )


def check_latents(arguments: Mapping[str, Any], num_prompts: int, channels: int, scale_factor: int) -> None:
    """Checks initial latents; where `height` or `width` is `None`, that side is not checked."""
    latents = arguments["latents"]
    if latents is None:
        return
    if not isinstance(latents, torch.Tensor):
        raise TypeError(f"`latents` must be a torch tensor, got {type(latents).__name__}.")
    sides = [None if arguments[name] is None else arguments[name] // scale_factor for name in ("height", "width")]
    expected = (num_prompts * arguments["num_images_per_prompt"], channels, *sides)
    if latents.ndim != 4 or any(side not in (None, got) for side, got in zip(expected, latents.shape, strict=True)):
        wanted = "×".join("any" if side is None else str(side) for side in expected)
        raise ValueError(f"`latents` must have shape {wanted} (images×channels×h×w), got {tuple(latents.shape)}.")


def check_ip_adapter(arguments: Mapping[str, Any], components: Mapping[str, Any]) -> None:
    """Checks that there is an image prompt if, and only if, an IP-Adapter is loaded."""
    image, embeddings = arguments["ip_adapter_image"], arguments["ip_adapter_image_embeds"]
    # As an attribute: diffusers notes a loaded IP-Adapter in no other way.
    is_loaded = getattr(components["unet"].config, "encoder_hid_dim_type", None) == "ip_image_proj"
    if not is_loaded and not (image is None and embeddings is None):
        name = "ip_adapter_image_embeds" if image is None else "ip_adapter_image"
        raise ValueError(f"`{name}` is given, but no IP-Adapter is loaded: call `pipe.load_ip_adapter(...)` first.")
    if is_loaded and image is None and embeddings is None:
        raise ValueError(
            "An IP-Adapter is loaded, so `ip_adapter_image` or `ip_adapter_image_embeds` is needed; without image "
            "prompt, call `pipe.unload_ip_adapter()` first."
        )
    if image is not None and components["image_encoder"] is None:
        raise ValueError(
            "The pipeline has no image_encoder for `ip_adapter_image`: set `pipe.image_encoder`, or pass "
            "`ip_adapter_image_embeds`."
        )


def aligned_guidance(arguments: Mapping[str, Any], num_controlnets: int) -> dict[str, Any]:
    """Returns start and end of the control as two lists, as diffusers makes them before it checks them."""
    start, end = arguments["control_guidance_start"], arguments["control_guidance_end"]
    length = len(start) if isinstance(start, list) else len(end) if isinstance(end, list) else num_controlnets
    return {
        "control_guidance_start": start if isinstance(start, list) else [start] * length,
        "control_guidance_end": end if isinstance(end, list) else [end] * length,
    }


def text_width(model: Any) -> Any:
    """Returns the width of the text embeddings that a UNet or a ControlNet takes; a list if its levels differ."""
    # The embeddings of images that an IP-Adapter brings are projected too, but come beside those of text.
    projected = model.config.get("encoder_hid_dim_type") == "text_proj"
    width = model.config.encoder_hid_dim if projected else model.config.cross_attention_dim
    widths = list(width) if isinstance(width, (list, tuple)) else [width]
    return widths[0] if len(set(widths)) == 1 else widths
