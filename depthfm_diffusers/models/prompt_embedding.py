"""The constant text embedding that DepthFM's UNet attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class PromptEmbedding(ModelMixin, ConfigMixin):
    """Holds the one embedding that DepthFM's cross-attention sees: that of the empty prompt.

    The UNet comes from a text-to-image model, but every image gets the same prompt. Its embedding is saved as a
    component, so that no text encoder is needed to run. It starts as zeros and is not trained
    (`requires_grad=False`).

    Args:
        num_tokens: Number of tokens.
        dim: Width of a token: the UNet's `cross_attention_dim`.

    Raises:
        ValueError: If `num_tokens` or `dim` is less than 1.
    """

    # One parameter, which cannot be split over devices; read by `device_map="auto"`.
    _no_split_modules: ClassVar[list[str]] = []

    @register_to_config
    def __init__(self, num_tokens: int = 77, dim: int = 1024) -> None:
        super().__init__()
        for name, value in (("num_tokens", num_tokens), ("dim", dim)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.embedding = nn.Parameter(torch.zeros(1, num_tokens, dim), requires_grad=False)

    @classmethod
    def from_tensor(cls, embedding: torch.Tensor) -> PromptEmbedding:
        """Makes a component of a known embedding.

        Args:
            embedding: Floating-point tensor of shape 1×num_tokens×dim or num_tokens×dim; it is copied, and
                keeps its dtype.

        Returns:
            The component, on the embedding's device.

        Raises:
            ValueError: If `embedding` has another shape or is not of a floating-point dtype.
        """
        if embedding.ndim == 2:
            embedding = embedding[None]
        if embedding.ndim != 3 or embedding.shape[0] != 1 or not embedding.is_floating_point():
            raise ValueError(
                "`embedding` must be a floating-point tensor of shape 1×tokens×dim or tokens×dim, got "
                f"{embedding.dtype} of shape {tuple(embedding.shape)}."
            )
        module = cls(num_tokens=embedding.shape[1], dim=embedding.shape[2])
        module.embedding = nn.Parameter(embedding.detach().clone(), requires_grad=False)
        return module

    def forward(self, batch_size: int = 1) -> torch.Tensor:
        """Returns the embedding. Offloading needs the module to be called: a read of its parameter fires no hook.

        Args:
            batch_size: Number of times the embedding is repeated.

        Returns:
            Tensor of shape batch_size×num_tokens×dim: a view that shares memory, not to be written to.
        """
        return self.embedding.expand(batch_size, -1, -1)


@torch.no_grad()
def embed_empty_prompt(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> PromptEmbedding:
    """Embeds "" as `StableDiffusionPipeline.encode_prompt` does (diffusers 0.42, without `clip_skip`).

    The prompt is padded to the tokenizer's maximal length (77) with its padding token, which is not the same in 1.5
    and 2.1; the mask is passed only if the text encoder's configuration asks for it (neither does); the embedding is
    the last hidden state, after the final layer norm.

    Raises:
        ValueError: If the tokenizer's maximal length is not set, or longer than the text encoder can take.
    """
    length, longest = tokenizer.model_max_length, text_encoder.config.max_position_embeddings
    if length > longest:
        raise ValueError(
            f"`tokenizer` has model_max_length {length}, more than the text encoder's {longest} positions: set "
            "model_max_length in its tokenizer_config.json (77 for Stable Diffusion)."
        )
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    device = text_encoder.device
    hidden = text_encoder.eval()(
        tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device) if masked else None
    )[0]
    return PromptEmbedding.from_tensor(hidden).eval()
