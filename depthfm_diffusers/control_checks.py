"""Checks of a call and of components that diffusers' ControlNet pipelines make too late, or never."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_generation_arguments(arguments: Mapping[str, Any], num_prompts: int) -> None:
    """Checks what diffusers' pipelines find out only after the text encoder has run, or never.

    Args:
        arguments: Arguments of diffusers' `__call__`.
        num_prompts: Number of prompts among them.

    Raises:
        TypeError: If a number is not an integer, or the negative prompt is of another type than the prompt.
        ValueError: If a number is out of its range, or the number of negative prompts or generators does not fit.
    """
    per_prompt, generator = arguments["num_images_per_prompt"], arguments["generator"]
    for name in ("num_inference_steps", "num_images_per_prompt"):
        value = arguments[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"`{name}` must be an integer, got {value!r}.")
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    prompt, negative = arguments["prompt"], arguments["negative_prompt"]
    if negative is not None and prompt is not None and type(negative) is not type(prompt):
        raise TypeError(
            f"`negative_prompt` must be of the type of `prompt`, {type(prompt).__name__}, got "
            f"{type(negative).__name__}."
        )
    if isinstance(negative, list) and len(negative) != num_prompts:
        raise ValueError(
            f"`negative_prompt` must hold one negative prompt per prompt: there are {num_prompts} prompts, but "
            f"{len(negative)} negative ones."
        )
    if isinstance(generator, list) and len(generator) != num_prompts * per_prompt:
        raise ValueError(
            "`generator` must be one generator, or one per generated image: "
            f"{num_prompts} prompts × {per_prompt} images = {num_prompts * per_prompt}; got {len(generator)}."
        )
    strength = arguments.get("strength", 1.0)
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be in (0, 1], got {strength!r}.")
    if int(arguments["num_inference_steps"] * strength) < 1:
        raise ValueError(
            f"`strength` × `num_inference_steps` must be at least 1, or there is no step to take: got {strength} × "
            f"{arguments['num_inference_steps']}."
        )


def aligned_guidance(arguments: Mapping[str, Any], num_controlnets: int) -> dict[str, Any]:
    """Start and end of the control as two lists, as diffusers makes them before it checks them.

    Args:
        arguments: Arguments of diffusers' `__call__`.
        num_controlnets: Number of ControlNets.

    Returns:
        The two arguments.
    """
    start, end = arguments["control_guidance_start"], arguments["control_guidance_end"]
    length = len(start) if isinstance(start, list) else len(end) if isinstance(end, list) else num_controlnets
    return {
        "control_guidance_start": start if isinstance(start, list) else [start] * length,
        "control_guidance_end": end if isinstance(end, list) else [end] * length,
    }


def text_width(model: Any) -> Any:
    """Width of the text embeddings that a UNet or a ControlNet takes.

    Args:
        model: The network.

    Returns:
        The width; a list of widths if its levels differ.
    """
    # The embeddings of images that an IP-Adapter brings are projected too, but come beside those of text.
    projected = model.config.get("encoder_hid_dim_type") == "text_proj"
    width = model.config.encoder_hid_dim if projected else model.config.cross_attention_dim
    widths = list(width) if isinstance(width, (list, tuple)) else [width]
    return widths[0] if len(set(widths)) == 1 else widths
