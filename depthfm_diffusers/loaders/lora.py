"""LoRA for a pipeline whose only adaptable component is its UNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import logging

logger = logging.get_logger(__name__)


class UNetLoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """Stable Diffusion's LoRA loading for a pipeline without a text encoder.

    `load_lora_weights`, `save_lora_weights`, `set_adapters`, `unload_lora_weights` and the rest are diffusers' own.
    Only the places where they would look for a text encoder are changed.
    """

    _lora_loadable_modules: ClassVar[list[str]] = ["unet"]
    text_encoder = None

    @classmethod
    def lora_state_dict(cls, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Reads LoRA weights; those of a text encoder are left out, with a warning.

        Args:
            *args: See diffusers' `lora_state_dict`.
            **kwargs: As well.

        Returns:
            As diffusers' `lora_state_dict`: the weights, the alphas, and with `return_lora_metadata` the metadata.

        Raises:
            ValueError: If the weights change a text encoder and nothing else.
        """
        state_dict, *others = super().lora_state_dict(*args, **kwargs)
        # Stable Diffusion XL has a second one, `text_encoder_2`.
        kept = {key: value for key, value in state_dict.items() if not key.startswith(cls.text_encoder_name)}
        left_out = len(state_dict) - len(kept)
        if left_out:
            what = f"a text encoder, which {cls.__name__} does not have: its text embedding is constant"
            if not kept:
                raise ValueError(
                    f"The LoRA weights change {what}. They have no part for the UNet (names that start with 'unet.', "
                    "or 'lora_unet_' in kohya's files)."
                )
            logger.warning(
                f"{left_out} of {len(state_dict)} LoRA weights are left out: they change {what}. Those for the UNet "
                "are loaded. A file without the others (names that start with 'text_encoder', or 'lora_te' in kohya's "
                "files) loads without this message."
            )
        return kept, *others

    @classmethod
    def load_lora_into_text_encoder(cls, *args: Any, **kwargs: Any) -> None:
        """Does nothing: there is no text encoder."""

    def fuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """Fuses the adapters into the UNet's weights; see diffusers' `fuse_lora` for the other arguments."""
        super().fuse_lora(components=list(components), **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """Undoes `fuse_lora`."""
        super().unfuse_lora(components=list(components), **kwargs)
