"""A UNet with the decoder behind it: both trained as one network, through what is decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from ...pipelines.depthfm.image_maps import decode_log_depth
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline

Decode = Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], torch.Tensor]


class DecodingUNet(torch.nn.Module):
    """A UNet, and the autoencoder that decodes its estimate; called as the UNet is, with one more argument.

    Decoding is part of `forward`, because data parallelism sees what happens there alone.

    Args:
        unet: A UNet, or an `EncoderUNet`.
        vae: The autoencoder, whose decoder is trained.
        timestep_scale: Of the scheduler: the UNet's timestep is the flow time times this.
        decode: Decodes latents by a function that decodes a batch, see `DecodedLosses.decode`.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        vae: AutoencoderKL | AutoencoderTiny,
        timestep_scale: float,
        decode: Decode,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.timestep_scale = timestep_scale
        self.decode = decode

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        decoded_rows: torch.Tensor,
        return_dict: bool = False,
        **inputs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluates the UNet and decodes x̂_1 = x_t + (1 - t) v of some samples.

        Args:
            sample: The UNet's input, B×2·C×h×w or more; the current latent comes first.
            timestep: B, the flow time times `timestep_scale`.
            encoder_hidden_states: See the UNet.
            decoded_rows: N, which samples are decoded.
            return_dict: Has no effect: a tuple is returned.
            inputs: See `EncoderUNet`.

        Returns:
            The velocity, B×C×h×w; and the decoded log depth, N×1×H×W, float32.
        """
        velocity = self.unet(sample, timestep, encoder_hidden_states, return_dict=False, **inputs)[0]
        # Without a row the first sample is decoded and dropped: every weight must be in the graph.
        rows = decoded_rows if len(decoded_rows) else decoded_rows.new_zeros(1)
        left = (1 - timestep[rows] / self.timestep_scale).view(-1, 1, 1, 1)
        estimate = sample[rows, : velocity.shape[1]] + left * velocity[rows].float()
        values = self.decode(lambda latents: decode_log_depth(self.vae, latents), estimate)
        return velocity, values[: len(decoded_rows)]


def prepare_decoder(pipe: DepthFMPipeline) -> None:
    """Prepares the decoder of a pipeline for training, in float32; the encoder stays frozen."""
    pipe.vae.float()
    for name in ("decoder", "post_quant_conv"):
        module = getattr(pipe.vae, name, None)
        if module is not None:
            module.requires_grad_(True)
