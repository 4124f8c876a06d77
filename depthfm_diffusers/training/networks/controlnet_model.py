"""The ControlNet to train (new or loaded, all of it or adapters), and the frozen Stable Diffusion that it controls."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from ...checkpoints.networks import load_model
from ...pipelines.depthfm_controlnet.controlnet_checks import text_width
from ..lora import add_lora
from ..settings import LoraSettings, MemorySettings
from .base_model import load_schedule, load_stable_diffusion

DEFAULT_CONDITIONING_CHANNELS = (16, 32, 96, 256)
# The layers that a ControlNet has beside its copy of the UNet's encoder. They are new: adapters cannot replace their
# training.
NEW_LAYERS = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
ADAPTERS_FOLDER = "lora"


@dataclass(frozen=True)
class ControlNetSettings:
    """What a ControlNet starts from, and what of it is trained.

    Attributes:
        controlnet: Folder or Hub repository of a ControlNet to train further; `None`: a new one of the UNet.
        conditioning_channels: Widths of a new ControlNet's image encoder.
        lora: Adapters for the layers that are trained already; `None`: all weights are trained.
        memory: Memory format and attention.
    """

    controlnet: str | None
    conditioning_channels: tuple[int, ...] = DEFAULT_CONDITIONING_CHANNELS
    lora: LoraSettings | None = None
    memory: MemorySettings = field(default_factory=MemorySettings)


def build_controlnet(
    settings: ControlNetSettings, unet: UNet2DConditionModel, vae_scale_factor: int
) -> ControlNetModel:
    """Builds or loads the ControlNet to train, in float32 on the CPU; its trained parameters require a gradient.

    Args:
        settings: What it starts from.
        unet: The base's UNet. A new ControlNet copies its encoder, and has no effect at first: the convolutions at its
            outputs are zero.
        vae_scale_factor: Pixels per latent cell.

    Raises:
        FileNotFoundError: If the ControlNet does not exist.
        ValueError: If it does not fit the base.
    """
    name = settings.controlnet
    if name is None:
        channels = settings.conditioning_channels
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    else:
        controlnet = load_model(ControlNetModel, f"controlnet {name}", name)
        _check_fits(name, controlnet, unet)
    # The condition is halved from one width to the next, down to the latent's size.
    reduction = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    if reduction != vae_scale_factor:
        raise ValueError(
            f"conditioning_embedding_out_channels {controlnet.config.conditioning_embedding_out_channels} make the "
            f"control image {reduction} times smaller, the autoencoder images {vae_scale_factor} times: give "
            f"{vae_scale_factor.bit_length()} widths."
        )
    controlnet.requires_grad_(True)
    if settings.lora is not None:
        add_lora(controlnet, settings.lora)
        if name is None:
            for layer in NEW_LAYERS:
                getattr(controlnet, layer).requires_grad_(True)
    settings.memory.apply(controlnet)
    return controlnet


def load_base(name: str) -> StableDiffusionPipeline:
    """Loads Stable Diffusion, in float32 on the CPU."""
    return StableDiffusionPipeline(
        **load_stable_diffusion(name),
        scheduler=load_schedule(name, DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def freeze_base(base: StableDiffusionPipeline, memory: MemorySettings, accelerator: Accelerator) -> None:
    """Freezes the base and moves it to the device; text encoder and UNet get the dtype of mixed precision."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    for module in (base.vae, base.text_encoder, base.unet):
        module.requires_grad_(False).eval().to(accelerator.device)
    if dtype != torch.float32:
        # The autoencoder keeps its precision: its latents are the target.
        base.text_encoder.to(dtype)
        base.unet.to(dtype)
    memory.apply_memory_format(base.vae)
    memory.apply(base.unet)


def predict_with_control(
    controlnet: torch.nn.Module,
    unet: UNet2DConditionModel,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    embedding: torch.Tensor,
    control: torch.Tensor,
) -> torch.Tensor:
    """Evaluates the UNet with the residuals of the ControlNet.

    Args:
        controlnet: The trained ControlNet.
        unet: The frozen UNet.
        noisy: Noisy latents, B×C×h×w.
        timestep: B.
        embedding: Embedding of the prompts, B×tokens×width.
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


def save_controlnet(settings: ControlNetSettings, controlnet: ControlNetModel, folder: Path) -> None:
    """Writes a complete ControlNet, with the adapters merged into it.

    The adapters of a loaded ControlNet are also written to the subfolder `lora`, for its `load_lora_adapter`. Those of
    a new one are not: they are of no use without its new layers.

    Args:
        settings: What it was built with.
        controlnet: The trained ControlNet; changed if it has adapters.
        folder: Where it is written.
    """
    if settings.lora is not None:
        if settings.controlnet is not None:
            controlnet.save_lora_adapter(folder / ADAPTERS_FOLDER)
        controlnet.fuse_lora()
        controlnet.unload_lora()
    controlnet.register_to_config(_name_or_path="")  # or diffusers saves the path it was loaded from
    controlnet.save_pretrained(folder)


def _check_fits(name: str, controlnet: ControlNetModel, unet: UNet2DConditionModel) -> None:
    """Checks that a ControlNet fits a UNet."""
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
