"""A UNet with an image encoder in front of it: adding one, and training both as one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from ...checkpoints.networks import load_model
from ...models.image_encoder import ImageEncoder
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ..data.flow_data import FlowFrames
from .base_model import add_input_channels
from .decoding_unet import DecodingUNet

# Training frames that the statistics of the features are taken from, at most.
STATISTICS_FRAMES = 256


@dataclass(frozen=True)
class FeatureNoise:
    """What is done to the standardised features of the trunk in training, so that frames are not learnt by heart.

    Attributes:
        std: Standard deviation of the Gaussian noise that is added; features have a standard deviation of 1.
        dropout: Share of the channels that are set to 0, in [0, 1); the others are divided by 1 - `dropout`.
    """

    std: float = 0.0
    dropout: float = 0.0

    @torch.compiler.disable  # generators cannot be compiled
    def apply(self, features: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Returns changed features.

        Args:
            features: B×C×h×w.
            seeds: B, integers; what is drawn for a sample depends on its own seed alone.
        """
        changed = []
        for feature, seed in zip(features, seeds.tolist(), strict=True):
            generator = torch.Generator(feature.device).manual_seed(seed)
            if self.std > 0:
                noise = torch.randn(feature.shape, generator=generator, device=feature.device, dtype=feature.dtype)
                feature = feature + self.std * noise
            if self.dropout > 0:
                kept = torch.rand(len(feature), generator=generator, device=feature.device) >= self.dropout
                feature = feature * (kept / (1 - self.dropout)).to(feature.dtype)[:, None, None]
            changed.append(feature)
        return torch.stack(changed)


class EncoderUNet(torch.nn.Module):
    """A UNet whose input is completed by an image encoder; called as the UNet is, with more arguments.

    Args:
        unet: The UNet of a pipeline with an image encoder.
        image_encoder: The image encoder.
        noise: What is done to the features.
    """

    def __init__(self, unet: UNet2DConditionModel, image_encoder: ImageEncoder, noise: FeatureNoise) -> None:
        super().__init__()
        self.unet = unet
        self.image_encoder = image_encoder
        self.noise = noise

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        seeds: torch.Tensor,
        image_or_features: torch.Tensor | Sequence[torch.Tensor],
        return_dict: bool = True,
    ) -> object:
        """Evaluates the UNet.

        Args:
            sample: The UNet's input without the features, B×2·C×h×w or more.
            timestep: See the UNet.
            encoder_hidden_states: See the UNet.
            seeds: B, integers, see `FeatureNoise.apply`.
            image_or_features: The image, B×3×H×W in [-1, 1], or the output of `ImageEncoder.extract_features`, in any
                precision.
            return_dict: See the UNet.

        Returns:
            The UNet's output.
        """
        encoder = self.image_encoder
        features = image_or_features
        if isinstance(features, torch.Tensor):
            features = encoder.extract_features(features)
        merged = encoder.merge_features([feature.to(encoder.dtype) for feature in features])
        projected = encoder.projection(self.noise.apply(merged, seeds))
        return self.unet(
            torch.cat([sample, projected], dim=1), timestep, encoder_hidden_states, return_dict=return_dict
        )


def add_image_encoder(pipe: DepthFMPipeline, folder: str) -> DepthFMPipeline:
    """Adds an image encoder to a pipeline, which predicts the same as before until it is trained.

    Args:
        pipe: A pipeline without image encoder; its UNet grows in place.
        folder: The encoder, as `training/convert_image_encoder.py` writes it.

    Returns:
        A pipeline with the components of `pipe` and the encoder.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the pipeline has an image encoder, or the encoder cannot be read or does not fit.
    """
    if pipe.image_encoder is not None:
        raise ValueError(f"--image_encoder {folder}: the model has an image encoder already; leave the flag out.")
    if not (Path(folder).expanduser() / "config.json").is_file():
        raise FileNotFoundError(f"--image_encoder {folder} is not the folder of an image encoder: no config.json.")
    encoder = load_model(ImageEncoder, f"image_encoder {folder}", str(Path(folder).expanduser())).eval()
    add_input_channels(pipe.unet, encoder.config.out_channels)
    return DepthFMPipeline(**pipe.components | {"image_encoder": encoder}, **pipe.parameters)


def prepare_image_encoder(pipe: DepthFMPipeline, train_trunk: bool, train_projection: bool) -> None:
    """Freezes what is not trained of a pipeline's image encoder.

    Args:
        pipe: The pipeline.
        train_trunk: Whether all of the encoder is trained.
        train_projection: Whether its projection is trained.

    Raises:
        ValueError: If the trunk is to be trained and there is no encoder.
    """
    if pipe.image_encoder is None:
        if train_trunk:
            raise ValueError("--train_image_encoder: the model has no image encoder; give --image_encoder.")
        return
    pipe.image_encoder.trunk.requires_grad_(train_trunk)
    pipe.image_encoder.projection.requires_grad_(train_projection)


def set_feature_statistics(encoder: ImageEncoder, frames: FlowFrames) -> None:
    """Sets the mean and deviation of an encoder's features to those of training frames, evenly chosen.

    Args:
        encoder: Changed in place.
        frames: The frames to train on, as they are in the first epoch; skipped ones are left out.
    """
    indices = np.linspace(0, len(frames) - 1, min(len(frames), STATISTICS_FRAMES)).round().astype(int)
    samples = (frames[0, int(index)] for index in indices)
    encoder.set_feature_statistics(
        sample["image"][None].to(encoder.device) for sample in samples if not sample["skipped"]
    )


def take_networks(pipe: DepthFMPipeline, network: torch.nn.Module) -> None:
    """Puts a trained network into a pipeline: a UNet, alone or in an `EncoderUNet`, either in a `DecodingUNet`."""
    if isinstance(network, DecodingUNet):
        pipe.vae = network.vae
        network = network.unet
    if isinstance(network, EncoderUNet):
        pipe.image_encoder = network.image_encoder
        network = network.unet
    pipe.unet = network
