"""Conversion of the authors' UNet (`UNetModel` of CompVis' latent diffusion) to diffusers' `UNet2DConditionModel`.

`unet_config_from_hparams` translates the constructor's arguments, `convert_unet_state_dict` the names of the weights.
Both networks compute the same function; no weight is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel

# Group normalisation in the authors' network always has 32 groups.
_NORM_GROUPS = 32

REQUIRED_HPARAMS = (
    "image_size",
    "in_channels",
    "model_channels",
    "out_channels",
    "num_res_blocks",
    "attention_resolutions",
    "context_dim",
)
# The other arguments of the authors' constructor, with its defaults.
_DEFAULTS: dict[str, Any] = {
    "dropout": 0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "num_heads": -1,
    "num_head_channels": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_spatial_transformer": False,
    "transformer_depth": 1,
    "n_embed": None,
    "legacy": True,
    "disable_self_attentions": None,
    "num_attention_blocks": None,
    "disable_middle_self_attn": False,
    "use_linear_in_transformer": False,
}
# Arguments that do not change what this network computes: precision and memory of a run, initialisation, and
# settings of layers that it does not have (attention without a transformer, class labels).
_WITHOUT_EFFECT = {
    "use_checkpoint",
    "use_fp16",
    "use_bf16",
    "load_from_ckpt",
    "num_heads_upsample",
    "use_new_attention_order",
    "adm_in_channels",
}

_RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_config_from_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Translates `ldm_hparams`, the arguments of the authors' `UNetModel`, to those of `UNet2DConditionModel`.

    Arguments that are left out have the defaults of the authors' constructor. `attention_resolutions` are factors of
    downsampling (1 is the first level); the middle block always has attention. `transformer_depth` and
    `num_res_blocks` may be one number, or one per level; the middle block has the depth of the last level.
    `context_dim` may have one entry per transformer layer; all must be equal, since all layers get the same embedding.

    Args:
        hparams: The arguments, as plain Python values.

    Returns:
        Arguments for `UNet2DConditionModel`.

    Raises:
        ValueError: If arguments are missing, unknown, or of the wrong kind, or if they describe a network that the
            authors' code cannot run or that `UNet2DConditionModel` cannot express; the argument is named.
    """
    unknown = sorted(set(hparams) - set(REQUIRED_HPARAMS) - set(_DEFAULTS) - _WITHOUT_EFFECT)
    if unknown:
        raise ValueError(f"`ldm_hparams` has entries that the authors' UNet does not know: {', '.join(unknown)}.")
    missing = [name for name in REQUIRED_HPARAMS if hparams.get(name) is None]
    if missing:
        raise ValueError(f"`ldm_hparams` lacks {', '.join(missing)}.")
    # Where the authors' default is -1, None means the default.
    values = {**_DEFAULTS, **{k: v for k, v in hparams.items() if v is not None or _DEFAULTS.get(k) != -1}}
    _refuse_inexpressible(values)

    multipliers = _sequence(values, "channel_mult")
    levels = len(multipliers)
    widths = [_width(values, multiplier) for multiplier in multipliers]
    if widths[0] != values["model_channels"]:
        raise ValueError(f"`ldm_hparams.channel_mult` must start with 1, got {multipliers}.")
    has_attention = _attention_levels(values, levels)
    depths = _per_level(values, "transformer_depth", levels)
    for level, depth in enumerate(depths):
        if depth < 1 and (has_attention[level] or level == levels - 1):
            raise ValueError(f"`ldm_hparams.transformer_depth` must be at least 1 where there is attention: {depths}.")
    heads = [
        _num_heads(values, width, used=has_attention[level] or level == levels - 1)
        for level, width in enumerate(widths)
    ]

    down_types = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in has_attention]
    up_types = ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(has_attention)]
    if values["resblock_updown"] and levels > 1:
        if any(has_attention):
            raise ValueError(
                "`ldm_hparams.resblock_updown` together with attention outside the middle block cannot be "
                "converted: diffusers' UNet2DConditionModel has no such network."
            )
        down_types, up_types = ["ResnetDownsampleBlock2D"] * levels, ["ResnetUpsampleBlock2D"] * levels

    return {
        "sample_size": values["image_size"],
        "in_channels": _integer(values, "in_channels"),
        "out_channels": _integer(values, "out_channels"),
        "block_out_channels": tuple(widths),
        "layers_per_block": _scalar_if_equal(_per_level(values, "num_res_blocks", levels, minimum=1)),
        "down_block_types": tuple(down_types),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": tuple(up_types),
        "cross_attention_dim": _context_dim(values, max(depths)),
        "transformer_layers_per_block": _scalar_if_equal(depths),
        # What diffusers calls attention_head_dim in this class is the number of heads.
        "attention_head_dim": _scalar_if_equal(heads),
        "only_cross_attention": _scalar_if_equal(_self_attention_disabled(values, levels)),
        "use_linear_projection": bool(values["use_linear_in_transformer"]),
        "resnet_time_scale_shift": "scale_shift" if values["use_scale_shift_norm"] else "default",
        "dropout": float(values["dropout"]),
        "norm_num_groups": _NORM_GROUPS,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def convert_unet_state_dict(
    state_dict: Mapping[str, torch.Tensor], unet_config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Renames the weights of the authors' UNet to those of `UNet2DConditionModel`.

    Args:
        state_dict: Weights under the authors' names.
        unet_config: What `unet_config_from_hparams` returned for this network.

    Returns:
        The same tensors, under diffusers' names.

    Raises:
        ValueError: If weights are missing, unknown, or of another shape than the configuration says. The message
            lists them.
    """
    with torch.device("meta"):
        expected = UNet2DConditionModel(**unet_config).state_dict()
    prefixes = dict(_module_names(unet_config))
    names = {name: _authors_name(name, prefixes) for name in expected}

    problems = []
    if missing := sorted(set(names.values()) - set(state_dict)):
        problems.append(f"missing: {', '.join(missing)}")
    if unknown := sorted(set(state_dict) - set(names.values())):
        problems.append(f"unknown: {', '.join(unknown)}")
    mismatched = [
        f"{theirs} is {_shape(state_dict[theirs])}, {ours} should be {_shape(expected[ours])}"
        for ours, theirs in names.items()
        if theirs in state_dict and state_dict[theirs].shape != expected[ours].shape
    ]
    if mismatched:
        problems.append(f"of another shape: {'; '.join(mismatched)}")
    if problems:
        raise ValueError(
            f"`state_dict` does not hold the network that `ldm_hparams` describes. {'. '.join(problems)}."
        )
    return {ours: state_dict[theirs] for ours, theirs in names.items()}


def _module_names(unet_config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields pairs of diffusers' and the authors' name of each module; of a resnet without the names of its parts."""
    yield "conv_in", "input_blocks.0.0"
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"

    levels = len(unet_config["down_block_types"])
    layers = unet_config["layers_per_block"]
    layers = [layers] * levels if isinstance(layers, int) else list(layers)

    theirs = 1
    for level, block_type in enumerate(unet_config["down_block_types"]):
        for layer in range(layers[level]):
            yield f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{theirs}.0"
            if block_type.startswith("CrossAttn"):
                yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{theirs}.1"
            theirs += 1
        if level < levels - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{theirs}.0.op"
            yield f"down_blocks.{level}.downsamplers.0", f"input_blocks.{theirs}.0"
            theirs += 1

    theirs = 0
    for block, block_type in enumerate(unet_config["up_block_types"]):
        num_layers = layers[levels - 1 - block] + 1
        has_attention = block_type.startswith("CrossAttn")
        for layer in range(num_layers):
            yield f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{theirs}.0"
            if has_attention:
                yield f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{theirs}.1"
            theirs += 1
        if block < levels - 1:
            upsampler = f"output_blocks.{theirs - 1}.{2 if has_attention else 1}"
            yield f"up_blocks.{block}.upsamplers.0", upsampler


def _authors_name(name: str, prefixes: Mapping[str, str]) -> str:
    """Returns the authors' name of a weight of diffusers' UNet."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in prefixes:
            first, *rest = parts[length:]
            return ".".join([prefixes[prefix], _RESNET_NAMES.get(first, first), *rest])
    raise ValueError(f"`unet_config` describes a network with a weight that the authors' network lacks: {name}.")


def _refuse_inexpressible(values: Mapping[str, Any]) -> None:
    """Raises if `UNet2DConditionModel` has no counterpart for an argument."""
    for name, expressible, reason in (
        ("dims", 2, "only networks of two-dimensional images can be converted"),
        ("num_classes", None, "DepthFM's pipeline has no class labels"),
        ("n_embed", None, "the network predicts codebook entries instead of a velocity"),
        ("use_spatial_transformer", True, "attention without a transformer block has no counterpart in diffusers"),
        ("disable_middle_self_attn", False, "the middle block always has self-attention in diffusers"),
    ):
        if values[name] != expressible:
            raise ValueError(f"`ldm_hparams.{name}` is {values[name]!r}, which cannot be converted: {reason}.")
    if not values["conv_resample"] and len(_sequence(values, "channel_mult")) > 1 and not values["resblock_updown"]:
        raise ValueError(
            "`ldm_hparams.conv_resample` is False, which cannot be converted: resampling always has a convolution in "
            "diffusers."
        )


def _attention_levels(values: Mapping[str, Any], levels: int) -> list[bool]:
    """Returns whether each level has attention, which the authors give as factors of downsampling."""
    resolutions = _sequence(values, "attention_resolutions")
    has_attention = [2**level in resolutions for level in range(levels)]
    if values["num_attention_blocks"] is not None:
        for level, count in enumerate(_per_level(values, "num_attention_blocks", levels)):
            # The authors' count would leave the upward half one transformer short, where diffusers has all or none.
            if count > 0 and has_attention[level]:
                raise ValueError(
                    "`ldm_hparams.num_attention_blocks` cannot be converted: diffusers has attention after each block "
                    f"of a level or after none, but it is {count} at level {level}."
                )
            has_attention[level] = False
    return has_attention


def _num_heads(values: Mapping[str, Any], width: int, used: bool) -> int:
    """Returns the number of attention heads at a width, as the authors' constructor works it out."""
    by_width = values["num_head_channels"] != -1
    name = "num_head_channels" if by_width else "num_heads"
    if not by_width and values["num_heads"] == -1:
        raise ValueError("`ldm_hparams` must have `num_heads` or `num_head_channels`; both are missing or -1.")
    setting = _integer(values, name)
    heads = width // setting if by_width else setting
    if not used:
        return max(heads, 1)
    if not 1 <= heads <= width:
        raise ValueError(f"`ldm_hparams.{name}` is {setting}, which does not fit a layer of {width} channels.")
    head_dim = setting if by_width and not values["legacy"] else width // heads
    if head_dim != width // heads:
        raise ValueError(
            f"`ldm_hparams.num_head_channels` is {setting}, which cannot be converted: it does not divide a layer of "
            f"{width} channels, and diffusers would use heads of {width // heads} channels there."
        )
    if heads * head_dim != width and values["use_linear_in_transformer"]:
        raise ValueError(
            f"`ldm_hparams.{name}` is {setting}, which does not divide a layer of {width} channels; the authors' "
            "network cannot run with it and `use_linear_in_transformer`."
        )
    return heads


def _context_dim(values: Mapping[str, Any], depth: int) -> int:
    """Returns the width of the embedding that cross-attention gets."""
    dims = values["context_dim"]
    if isinstance(dims, int):
        return _integer(values, "context_dim")
    dims = _sequence(values, "context_dim")
    if len(set(dims)) != 1 or len(dims) not in (1, depth):
        raise ValueError(
            f"`ldm_hparams.context_dim` is {dims}, which cannot be converted: it must be one number, or {depth} equal "
            "ones (`transformer_depth`), since all layers get the same embedding."
        )
    return _integer({"context_dim": dims[0]}, "context_dim")


def _self_attention_disabled(values: Mapping[str, Any], levels: int) -> list[bool]:
    """Returns whether the transformers of each level have cross-attention in place of self-attention."""
    if values["disable_self_attentions"] is None:
        return [False] * levels
    disabled = [bool(flag) for flag in _sequence(values, "disable_self_attentions")]
    if len(disabled) != levels:
        raise ValueError(f"`ldm_hparams.disable_self_attentions` must have {levels} entries, got {disabled}.")
    return disabled


def _width(values: Mapping[str, Any], multiplier: float) -> int:
    """Returns the channels of a level."""
    base = _integer(values, "model_channels")
    width = base * multiplier if isinstance(multiplier, (int, float)) else 0
    if width < 1 or width != int(width) or int(width) % _NORM_GROUPS:
        raise ValueError(
            f"`ldm_hparams.channel_mult` has {multiplier!r}, which with `model_channels` {base} gives {width} "
            f"channels; they must be a multiple of {_NORM_GROUPS}, the groups of the normalisation."
        )
    return int(width)


def _integer(values: Mapping[str, Any], name: str, minimum: int = 1) -> int:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`ldm_hparams.{name}` must be an integer of at least {minimum}, got {value!r}.")
    return value


def _sequence(values: Mapping[str, Any], name: str) -> list[Any]:
    value = values[name]
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, set, frozenset)):
        raise ValueError(f"`ldm_hparams.{name}` must be a list, got {value!r}.")
    if not value and name == "channel_mult":
        raise ValueError("`ldm_hparams.channel_mult` is empty.")
    return list(value)


def _per_level(values: Mapping[str, Any], name: str, levels: int, minimum: int = 0) -> list[int]:
    """Returns one integer per level, given one for all or a list."""
    value = values[name]
    entries = [value] * levels if isinstance(value, int) else _sequence(values, name)
    if len(entries) != levels:
        raise ValueError(f"`ldm_hparams.{name}` must be one number or one for each of {levels} levels, got {value!r}.")
    return [_integer({name: entry}, name, minimum) for entry in entries]


def _scalar_if_equal(entries: list[Any]) -> Any:
    """Returns one entry if all are equal, as diffusers' own configurations are written; else all."""
    return entries[0] if len(set(entries)) == 1 else tuple(entries)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
