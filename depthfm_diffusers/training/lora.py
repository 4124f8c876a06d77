"""LoRA through peft: adapters on the attention layers, trained and checkpointed without the frozen weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from .settings import LoraSettings

# The attention's projections, as in diffusers' text-to-image LoRA example.
TARGET_MODULES = ("to_k", "to_q", "to_v", "to_out.0")
CHECKPOINT_FILE = "trained.safetensors"


def add_lora(model: UNet2DConditionModel | ControlNetModel, settings: LoraSettings) -> None:
    """Freezes a network and adds trainable adapters; at the start they change nothing.

    Args:
        model: Changed in place.
        settings: Of the adapters.

    Raises:
        ValueError: If no layer has such a name.
    """
    model.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides it by the rank: any number
        init_lora_weights="gaussian",
        target_modules=list(settings.target_modules),
    )
    model.add_adapter(config)
    cast_training_params(model, dtype=torch.float32)


def lora_state_dict(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """Returns the adapters' weights, in peft's names."""
    return get_peft_model_state_dict(unet)


def checkpoint_trained_only(accelerator: Accelerator) -> None:
    """Leaves the frozen weights out of the checkpoints of `accelerator`: they are the base's."""

    def save(models: list[Any], weights: list[Any], output_dir: str) -> None:
        weights.clear()  # accelerate then writes no model file of its own
        if accelerator.is_main_process:
            for model in models:
                trained = _trained(accelerator.unwrap_model(model))
                tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}
                save_file(tensors, Path(output_dir) / CHECKPOINT_FILE)

    def load(models: list[Any], input_dir: str) -> None:
        while models:
            model = accelerator.unwrap_model(models.pop())
            stored = load_file(Path(input_dir) / CHECKPOINT_FILE)
            if stored.keys() != _trained(model).keys():
                raise ValueError(
                    f"{input_dir}/{CHECKPOINT_FILE} has other layers than are trained: was a flag changed?"
                )
            model.load_state_dict(stored, strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adapters(unet: UNet2DConditionModel, folder: Path) -> None:
    """Writes `pytorch_lora_weights.safetensors`, for `pipe.load_lora_weights` or `pipe.unet.load_lora_adapter`."""
    DepthFMPipeline.save_lora_weights(
        folder,
        unet_lora_layers={name: tensor.detach().cpu() for name, tensor in lora_state_dict(unet).items()},
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
