"""The ControlNet that is trained: made of a UNet or loaded, whole or by adapters, and written at the end."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from ...pipelines.depthfm_controlnet.controlnet_checks import text_width
from ..lora import add_lora
from .base_model import load_model

DEFAULT_CONDITIONING_CHANNELS = (16, 32, 96, 256)
# What a ControlNet has beside its copy of the UNet's encoder: new layers, which no adapter can stand in for.
NEW_LAYERS = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
ADAPTERS_FOLDER = "lora"


def build_controlnet(args: argparse.Namespace, unet: UNet2DConditionModel, vae_scale_factor: int) -> ControlNetModel:
    """The ControlNet to train, in float32 on the CPU; its parameters that are to be trained require a gradient.

    Args:
        args: Flags of `train_depth_controlnet.py`.
        unet: Of the base. A new ControlNet copies its encoder, and changes nothing at first: the convolutions that
            lead out of it are zero.
        vae_scale_factor: Pixels per latent cell.

    Raises:
        FileNotFoundError: If there is no `--controlnet`.
        ValueError: If it does not fit the base.
    """
    if args.controlnet is None:
        channels = tuple(args.conditioning_embedding_out_channels or DEFAULT_CONDITIONING_CHANNELS)
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    else:
        controlnet = load_model(ControlNetModel, f"controlnet {args.controlnet}", args.controlnet)
        _check_fits(args.controlnet, controlnet, unet)
    # The condition is halved from one width to the next, down to the latent's size.
    reduction = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    if reduction != vae_scale_factor:
        raise ValueError(
            f"conditioning_embedding_out_channels {controlnet.config.conditioning_embedding_out_channels} make the "
            f"control image {reduction} times smaller, the autoencoder images {vae_scale_factor} times: give "
            f"{vae_scale_factor.bit_length()} widths."
        )
    controlnet.requires_grad_(True)
    if args.lora_rank:
        alpha = args.lora_rank if args.lora_alpha is None else args.lora_alpha
        add_lora(controlnet, args.lora_rank, alpha, tuple(args.lora_target_modules))
        if args.controlnet is None:
            for name in NEW_LAYERS:
                getattr(controlnet, name).requires_grad_(True)
    if args.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
    if args.enable_xformers_memory_efficient_attention:
        controlnet.enable_xformers_memory_efficient_attention()
    if args.channels_last:
        controlnet.to(memory_format=torch.channels_last)
    return controlnet


def predict_with_control(
    controlnet: torch.nn.Module,
    unet: UNet2DConditionModel,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    embedding: torch.Tensor,
    control: torch.Tensor,
) -> torch.Tensor:
    """What the UNet predicts with what the ControlNet adds to it.

    Args:
        controlnet: The trained ControlNet.
        unet: The frozen UNet.
        noisy: Noisy latents, B×C×h×w.
        timestep: B.
        embedding: Of the prompts, B×tokens×width.
        control: Control images, B×1×H×W, uint8.

    Returns:
        B×C×h×w.
    """
    picture = (control.float() / 255).expand(-1, 3, -1, -1)
    down, mid = controlnet(noisy, timestep, embedding, controlnet_cond=picture, return_dict=False)
    dtype = unet.dtype
    return unet(
        noisy.to(dtype),
        timestep,
        embedding.to(dtype),
        down_block_additional_residuals=[one.to(dtype) for one in down],
        mid_block_additional_residual=mid.to(dtype),
        return_dict=False,
    )[0]


def save_controlnet(args: argparse.Namespace, controlnet: ControlNetModel, folder: Path) -> None:
    """Writes a ControlNet that needs nothing else: adapters become part of it.

    Those of a `--controlnet` are kept in the subfolder `lora` as well, for its `load_lora_adapter`. Those of a new
    ControlNet are not: without its new layers they are of no use.

    Args:
        args: Flags of `train_depth_controlnet.py`.
        controlnet: The trained ControlNet; changed if it has adapters.
        folder: Where it is written.
    """
    if args.lora_rank:
        if args.controlnet is not None:
            controlnet.save_lora_adapter(folder / ADAPTERS_FOLDER)
        controlnet.fuse_lora()
        controlnet.unload_lora()
    controlnet.register_to_config(_name_or_path="")  # or diffusers saves the path it was loaded from
    controlnet.save_pretrained(folder)


def _check_fits(name: str, controlnet: ControlNetModel, unet: UNet2DConditionModel) -> None:
    """Raises unless a ControlNet is one for a UNet."""
    widths = text_width(controlnet), text_width(unet)
    if widths[0] != widths[1]:
        raise ValueError(
            f"controlnet {name} attends to text embeddings of width {widths[0]}, the base's unet to {widths[1]}: they "
            "are not of one Stable Diffusion (1.x has 768, 2.x 1024)."
        )
    for setting in ("block_out_channels", "layers_per_block", "in_channels"):
        ours, theirs = controlnet.config[setting], unet.config[setting]
        if ours != theirs:
            raise ValueError(f"controlnet {name} has {setting} {ours}, the base's unet {theirs}: they do not fit.")
