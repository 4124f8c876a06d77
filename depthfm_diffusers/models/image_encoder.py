"""Features of an image from a network trained on ImageNet, as an additional condition of the flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

# Per stage of EfficientNet-Lite, in all of its sizes: kernel size, stride, and expansion of the hidden width.
STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
# The stages whose outputs are used: the last ones at strides 8, 16 and 32.
FEATURE_STAGES = (2, 4, 6)


class ImageEncoder(ModelMixin, ConfigMixin):
    """EfficientNet-Lite features of an image, projected to a few channels at the size of a latent.

    The trunk is EfficientNet-Lite without its classifier
    ([EfficientNet](https://arxiv.org/abs/1905.11946) without squeeze-and-excitation and with ReLU6). Its outputs at
    strides 8, 16 and 32 are resized to stride 8, concatenated, standardised per channel, and projected by a learnt 1×1
    convolution. Where `DepthFMPipeline` has such a component, its output is concatenated to the UNet's input.

    The default sizes are those of EfficientNet-Lite0. `depthfm_diffusers.checkpoints.efficientnet_lite` converts
    published weights; without them the trunk is random.

    Args:
        out_channels: Channels F of the output.
        block_out_channels: Channels of the trunk's seven stages.
        layers_per_block: Blocks in each of the seven stages.
        stem_channels: Channels of the trunk's first convolution.

    Raises:
        ValueError: If `block_out_channels` or `layers_per_block` does not have seven entries, or a size is less than
            1.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["InvertedResidual"]
    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    @register_to_config
    def __init__(
        self,
        out_channels: int = 64,
        block_out_channels: Sequence[int] = (16, 24, 40, 80, 112, 192, 320),
        layers_per_block: Sequence[int] = (1, 2, 2, 3, 3, 4, 1),
        stem_channels: int = 32,
    ) -> None:
        super().__init__()
        for name, size in (("out_channels", out_channels), ("stem_channels", stem_channels)):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}.")
        for name, sizes in (("block_out_channels", block_out_channels), ("layers_per_block", layers_per_block)):
            if len(sizes) != len(STAGES) or min(sizes) < 1:
                raise ValueError(f"`{name}` must have {len(STAGES)} entries of at least 1, got {sizes!r}.")
        self.trunk = EfficientNetLiteTrunk(stem_channels, block_out_channels, layers_per_block)
        channels = sum(self.feature_channels)
        self.register_buffer("feature_mean", torch.zeros(channels))
        self.register_buffer("feature_std", torch.ones(channels))
        self.projection = nn.Conv2d(channels, out_channels, kernel_size=1)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the features at strides 8, 16 and 32."""
        return tuple(self.config.block_out_channels[stage] for stage in FEATURE_STAGES)

    def extract_features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Computes the trunk's features, which do not depend on what is learnt if the trunk is frozen.

        Args:
            image: B×3×H×W in [-1, 1].

        Returns:
            The features at strides s = 8, 16 and 32, B×C_s×ceil(H/s)×ceil(W/s).
        """
        return self.trunk(image.to(self.dtype))

    def merge_features(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Resizes features bilinearly to the size of the first of them, concatenates and standardises them.

        Args:
            features: The output of `extract_features`.

        Returns:
            B×C×ceil(H/8)×ceil(W/8), C being the sum of `feature_channels`.
        """
        size = features[0].shape[-2:]
        merged = torch.cat([F.interpolate(feature, size, mode="bilinear") for feature in features], dim=1)
        return (merged - self.feature_mean[:, None, None]) / self.feature_std[:, None, None]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encodes images.

        Args:
            image: B×3×H×W in [-1, 1].

        Returns:
            B×F×h×w, h = ceil(H/8) and w = ceil(W/8), in the dtype of the weights.
        """
        return self.projection(self.merge_features(self.extract_features(image)))

    @torch.no_grad()
    def set_feature_statistics(self, images: Iterable[torch.Tensor]) -> None:
        """Sets the mean and the standard deviation that features are standardised by, to those of some images.

        A channel that is constant on the images is not scaled.

        Args:
            images: Batches B×3×H×W in [-1, 1], on the module's device. Each pixel of the features counts the same.

        Raises:
            ValueError: If there are no images, or a feature is not finite.
        """
        count = [0] * len(FEATURE_STAGES)
        # Sums in float64 on the CPU (not every accelerator has float64), of the values and of their squares.
        sums = [torch.zeros(2, channels, dtype=torch.float64) for channels in self.feature_channels]
        for image in images:
            for i, feature in enumerate(self.extract_features(image)):
                values = feature.transpose(0, 1).flatten(1).cpu().double()
                count[i] += values.shape[1]
                sums[i] += torch.stack([values.sum(dim=1), values.square().sum(dim=1)])
        if 0 in count:
            raise ValueError("`images` must have at least one image.")
        moments = torch.cat([total / number for total, number in zip(sums, count, strict=True)], dim=1)
        mean, square = moments
        if not torch.isfinite(moments).all():
            raise ValueError("Features of `images` are NaN or infinite.")
        std = (square - mean.square()).clamp_min(0).sqrt()
        # Below this, the deviation is rounding error.
        std[std < 1e-4 * square.sqrt()] = 1.0
        std[square == 0] = 1.0
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)


class EfficientNetLiteTrunk(nn.Module):
    """EfficientNet-Lite up to its last stage, without head and classifier.

    Args:
        stem_channels: Channels of the first convolution.
        block_out_channels: Channels of the stages.
        layers_per_block: Blocks in each stage.
    """

    _gradient_checkpointing_func: Callable  # set by `enable_gradient_checkpointing`

    def __init__(self, stem_channels: int, block_out_channels: Sequence[int], layers_per_block: Sequence[int]) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.stem = ConvNormActivation(3, stem_channels, kernel_size=3, stride=2)
        self.stages = nn.ModuleList()
        channels = stem_channels
        for (kernel_size, stride, expansion), width, layers in zip(
            STAGES, block_out_channels, layers_per_block, strict=True
        ):
            blocks = []
            for layer in range(layers):
                blocks.append(InvertedResidual(channels, width, kernel_size, stride if layer == 0 else 1, expansion))
                channels = width
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Computes features.

        Args:
            image: B×3×H×W in [-1, 1].

        Returns:
            The outputs of the stages `FEATURE_STAGES`, at strides 8, 16 and 32.
        """
        # The weights were trained on (p - 127) / 128, p being the pixel value in 0..255.
        hidden_states = self.stem((image * 127.5 + 0.5) / 128)
        features = []
        for i, stage in enumerate(self.stages):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(stage, hidden_states)
            else:
                hidden_states = stage(hidden_states)
            if i in FEATURE_STAGES:
                features.append(hidden_states)
        return features


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection, with a skip connection where the shape stays.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        expansion: Hidden channels per input channel; with 1 there is no expanding layer.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = ConvNormActivation(in_channels, hidden, kernel_size=1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNormActivation(hidden, hidden, kernel_size, stride, groups=hidden)
        self.project = ConvNormActivation(hidden, out_channels, kernel_size=1, activation=False)
        self.has_skip = stride == 1 and in_channels == out_channels

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies the block to B×C×h×w."""
        out = self.project(self.depthwise(self.expand(hidden_states)))
        return hidden_states + out if self.has_skip else out


class ConvNormActivation(nn.Module):
    """Convolution with TensorFlow's padding, normalisation, and ReLU6.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel.
        stride: Stride of the convolution.
        groups: Groups of channels that are convolved separately.
        activation: Whether ReLU6 follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        # With stride 1, TensorFlow's padding is symmetric.
        padding = kernel_size // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = FrozenStatisticsNorm(out_channels)
        self.activation = nn.ReLU6() if activation else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies the layer to B×C×H×W, and returns B×C'×ceil(H/stride)×ceil(W/stride)."""
        stride = self.conv.stride[0]
        if stride > 1:
            # TensorFlow's "same" padding depends on the size, and puts an odd pixel at the end.
            kernel_size = self.conv.kernel_size[0]
            height, width = (
                max((-(-side // stride) - 1) * stride + kernel_size - side, 0) for side in hidden_states.shape[-2:]
            )
            hidden_states = F.pad(hidden_states, (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.activation(self.norm(self.conv(hidden_states)))


class FrozenStatisticsNorm(nn.Module):
    """Batch normalisation with the statistics that it was loaded with, in training too.

    Frames of a few scenes would move them away from what the other weights were trained with.

    Args:
        channels: Number of channels.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalises B×C×h×w per channel."""
        return F.batch_norm(
            hidden_states, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=1e-3
        )
