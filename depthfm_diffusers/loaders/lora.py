"""LoRA for a pipeline whose only adaptable component is its UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin


class UNetLoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """Stable Diffusion's LoRA loading for a pipeline without a text encoder.

    `load_lora_weights`, `save_lora_weights`, `set_adapters`, `unload_lora_weights` and the rest are diffusers' own.
    Only the places where they would look for a text encoder are changed.
    """

    _lora_loadable_modules: ClassVar[list[str]] = ["unet"]
    text_encoder = None

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        """Refuses an adapter that changes a text encoder; does nothing for any other.

        Raises:
            ValueError: If the adapter has weights for a text encoder.
        """
        if any(key.startswith(f"{cls.text_encoder_name}.") for key in state_dict):
            raise ValueError(
                f"The LoRA weights change a text encoder, which {cls.__name__} does not have: its text embedding is "
                "constant. Keep only the weights whose names start with 'unet.'."
            )

    def fuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """Fuses the adapters into the UNet's weights; see diffusers' `fuse_lora` for the other arguments."""
        super().fuse_lora(components=list(components), **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """Undoes `fuse_lora`."""
        super().unfuse_lora(components=list(components), **kwargs)
