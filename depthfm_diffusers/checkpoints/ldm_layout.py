"""The layout of the authors' UNet, as far as the names and shapes of its weights say it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..utils.errors import describe_error
from ..utils.imports import import_optional
from .ldm_unet import REQUIRED_HPARAMS

# What the weights do not say, as in Stable Diffusion 2.1, which the authors' UNet was fine-tuned from. The size is
# only recorded: the network takes any.
HEAD_CHANNELS = 64
IMAGE_SIZE = 64
_HEADS = ("num_heads", "num_head_channels")


def complete_hparams(
    given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], what: str
) -> tuple[dict[str, Any], list[str]]:
    """Completes the hyperparameters of a UNet from its weights.

    Args:
        given: Known hyperparameters. If they have all that the authors' constructor needs, they are returned as they
            are; else they are preferred to what the weights say.
        tensors: The UNet's weights under the authors' names.
        what: What errors call the file of the weights.

    Returns:
        The hyperparameters, and a sentence for each of them that is neither known nor said by the weights.

    Raises:
        ValueError: If the weights are not of such a network, or do not say the number of attention heads and the
            default does not fit.
    """
    if all(given.get(name) is not None for name in REQUIRED_HPARAMS):
        return dict(given), []
    try:
        hparams = {**_hparams_from_shapes(tensors), **given}
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{what} does not hold the authors' UNet: {describe_error(error)}. Its layout cannot be read from its "
            "weights. Give all of it with `hparams` (`--hparams`)."
        ) from error
    notes = []
    if all(given.get(name) is None for name in _HEADS):
        _check_default_heads(hparams, what)
        hparams["num_head_channels"] = HEAD_CHANNELS
        notes.append(
            f"The weights do not say the number of attention heads: heads of {HEAD_CHANNELS} channels are assumed, as "
            "in Stable Diffusion 2.1."
        )
    return hparams, notes


def read_hparams(path: Path) -> dict[str, Any]:
    """Reads hyperparameters of the authors' UNet from a JSON or YAML file.

    Args:
        path: The file: the arguments of the authors' `UNetModel`, at its top, under `ldm_hparams`, or under
            `model.params.unet_config.params` as in the configurations of latent diffusion.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is YAML, and PyYAML is not installed.
        ValueError: If it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`hparams` {path}: there is no such file.")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() in (".yaml", ".yml"):
            content = import_optional("yaml", "train", "Reading `hparams` from YAML").safe_load(text)
        else:
            content = json.loads(text)
    except ImportError:
        raise
    except Exception as error:  # PyYAML has exceptions of its own
        raise ValueError(f"`hparams` {path} cannot be read as JSON or YAML: {describe_error(error)}") from error
    for place in (("ldm_hparams",), ("model", "params", "unet_config", "params")):
        inner = content
        for name in place:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if inner is not None:
            content = inner
    if not isinstance(content, dict) or not content:
        raise ValueError(f"`hparams` {path} must hold the arguments of the authors' UNetModel, by their names.")
    return content


def _hparams_from_shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Reads off what names and shapes say. Raises `KeyError` and its like if they are of another network."""
    width, in_channels = tensors["input_blocks.0.0.weight"].shape[:2]
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("output_blocks."))
    # The upward half says where the levels end: the last block of each, but for the first level's, has an upsampler.
    levels: list[list[int]] = [[]]
    resamples_in_blocks = False
    for number in range(blocks):
        levels[0].append(number)
        ends = [
            kind
            for place in (1, 2)
            for kind in ("conv", "in_layers.0")
            if f"output_blocks.{number}.{place}.{kind}.weight" in tensors
        ]
        if ends:
            levels.insert(0, [])
            resamples_in_blocks = ends[0] != "conv"

    multipliers, attention, depths, res_blocks, scale_shift, only_cross = [], [], [], [], set(), []
    for level, numbers in enumerate(levels):
        first = f"output_blocks.{numbers[0]}"
        out_channels = tensors[f"{first}.0.out_layers.3.weight"].shape[0]
        multipliers.append(out_channels // width if out_channels % width == 0 else out_channels / width)
        res_blocks.append(len(numbers) - 1)
        scale_shift.add(tensors[f"{first}.0.emb_layers.1.weight"].shape[0] == 2 * out_channels)
        has_attention = f"{first}.1.norm.weight" in tensors
        if has_attention:
            attention.append(2**level)
        transformer = f"{first}.1" if has_attention else "middle_block.1"
        depths.append(_count(tensors, f"{transformer}.transformer_blocks"))
        only_cross.append(has_attention and _has_only_cross_attention(tensors, transformer))
    depths[-1] = _count(tensors, "middle_block.1.transformer_blocks")
    if len(scale_shift) > 1:
        raise ValueError("its residual blocks are of two kinds")

    hparams: dict[str, Any] = {
        "image_size": IMAGE_SIZE,
        "in_channels": in_channels,
        "out_channels": tensors["out.2.weight"].shape[0],
        "model_channels": width,
        "num_res_blocks": res_blocks,
        "attention_resolutions": attention,
        "channel_mult": multipliers,
        "use_spatial_transformer": True,
        "transformer_depth": depths,
        "context_dim": tensors["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "use_linear_in_transformer": tensors["middle_block.1.proj_in.weight"].ndim == 2,
    }
    if scale_shift == {True}:
        hparams["use_scale_shift_norm"] = True
    if resamples_in_blocks:
        hparams["resblock_updown"] = True
    if any(only_cross):
        hparams["disable_self_attentions"] = only_cross
    return hparams


def _count(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Returns how many numbered parts there are under a name."""
    place = len(prefix) + 1
    return 1 + max(int(name[place:].split(".")[0]) for name in tensors if name.startswith(f"{prefix}."))


def _has_only_cross_attention(tensors: Mapping[str, torch.Tensor], transformer: str) -> bool:
    """Returns whether a transformer's first attention takes the text's width, where that is not its own."""
    block = f"{transformer}.transformer_blocks.0"
    keys, queries = tensors[f"{block}.attn1.to_k.weight"].shape[1], tensors[f"{block}.attn1.to_q.weight"].shape[1]
    return keys != queries


def _check_default_heads(hparams: Mapping[str, Any], what: str) -> None:
    """Raises if heads of 64 channels would be a bad guess."""
    levels = len(hparams["channel_mult"])
    with_attention = {int(math.log2(factor)) for factor in hparams["attention_resolutions"]} | {levels - 1}
    widths = sorted({int(hparams["model_channels"] * hparams["channel_mult"][level]) for level in with_attention})
    reason = None
    if not hparams["use_linear_in_transformer"]:
        reason = "it has convolutions around its attention, as in Stable Diffusion 1.x, where heads are different"
    elif unfit := [width for width in widths if width % HEAD_CHANNELS]:
        reason = f"heads of {HEAD_CHANNELS} channels, as in Stable Diffusion 2.1, do not fit layers of {unfit[0]}"
    if reason is not None:
        raise ValueError(
            f"{what}: the weights do not say the number of attention heads, and {reason}. Give num_heads or "
            'num_head_channels with `hparams` (`--hparams FILE`, such as {"num_heads": 8}).'
        )
