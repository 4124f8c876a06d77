"""Self-attention whose logits are rescaled by the number of tokens.

The authors' DepthFM code scales self-attention logits by sqrt(log n / log(4 n) / d) where xformers is not installed,
and by the usual sqrt(1 / d) where it is; n is the number of query tokens and d the width of a head. Weights converted
from their checkpoints reproduce either, according to `rescale_self_attention` of the pipeline.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0


class RescaledSelfAttnProcessor:
    """Attention processor of `diffusers.models.attention_processor.Attention` with rescaled self-attention.

    Without `encoder_hidden_states` (self-attention), logits are scaled by sqrt(log n / log(4 n) / d); with them
    (cross-attention), by 1 / sqrt(d) as usual. It is for the attention of `UNet2DConditionModel`'s transformer blocks:
    no spatial or group normalisation, residual or masks inside the attention.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the attention.

        Args:
            attn: The module whose projections are applied; they may be wrapped, by LoRA for example.
            hidden_states: Tokens of the queries, B×n×C.
            encoder_hidden_states: Tokens of the keys and values, B×m×D; `hidden_states` if `None`.
            attention_mask: Bias that is added to the logits, in one of the shapes that diffusers prepares.
            temb: Not used; part of the interface.

        Returns:
            Tensor of the shape of `hidden_states`.
        """
        batch_size, num_tokens, _ = hidden_states.shape
        is_self_attention = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], batch_size)
            attention_mask = attention_mask.view(batch_size, attn.heads, -1, attention_mask.shape[-1])

        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scale = query.shape[-1] ** -0.5
        if is_self_attention:
            scale *= math.sqrt(math.log(num_tokens) / math.log(4 * num_tokens))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scale)

        projection, dropout = attn.to_out
        return dropout(projection(attended.transpose(1, 2).flatten(2)))


def set_self_attention_rescaling(unet: UNet2DConditionModel, enabled: bool) -> None:
    """Switches the rescaling of a UNet's self-attention on or off.

    Cross-attention keeps its processors. Switching off touches only layers that were switched on, and gives them
    diffusers' default processor.

    Args:
        unet: The UNet, changed in place; possibly with adapters loaded.
        enabled: Whether self-attention logits are scaled by sqrt(log n / log(4 n) / d) instead of sqrt(1 / d).
    """
    for module in unet.modules():
        # Attention keeps no cross-attention width of its own when keys come from the queries' tokens.
        if not isinstance(module, Attention) or module.is_cross_attention:
            continue
        if enabled:
            module.set_processor(RescaledSelfAttnProcessor())
        elif isinstance(module.processor, RescaledSelfAttnProcessor):
            module.set_processor(AttnProcessor2_0())
