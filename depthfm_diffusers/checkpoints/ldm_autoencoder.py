"""Stable Diffusion's autoencoder from a single file, as `vae-ft-mse-840000-ema-pruned.safetensors`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from ..utils.errors import describe_error
from .model_files import not_finite
from .weight_files import find_network, is_weight, read_weight_file, unwrap_state_dict

# What the weights do not say, as in Stable Diffusion 1.x and 2.x. The size is that of a tile, if tiling is enabled.
SCALING_FACTOR = 0.18215
SAMPLE_SIZE = 512
_NORM_GROUPS = 32
_FIRST_LAYER = "encoder.conv_in.weight"
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def load_autoencoder_file(path: Path, trust_pickle: bool = False) -> tuple[AutoencoderKL, list[str]]:
    """Loads an `AutoencoderKL` from a single file, in float32 on the CPU.

    Its tensors have the names of latent diffusion or of diffusers, which may have a prefix such as
    `first_stage_model.`; other tensors are ignored. A `config.json` of diffusers beside the file is used; else the
    layout is read from the shapes, and the rest is as in Stable Diffusion 1.x and 2.x.

    Args:
        path: The file, safetensors or saved by `torch.save`.
        trust_pickle: See `read_weight_file`.

    Returns:
        The autoencoder, and a sentence for each thing that was assumed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another form, is damaged, or its values are not finite.
    """
    what = f"`vae` {path}"
    content = unwrap_state_dict(read_weight_file(path, "`vae`", trust_pickle))
    found = find_network(content, _FIRST_LAYER, what) if isinstance(content, Mapping) else None
    if found is None:
        raise ValueError(
            f"{what} does not hold an autoencoder of Stable Diffusion: no tensor in it is called {_FIRST_LAYER}. Give "
            "the folder of the autoencoder in diffusers' format."
        )
    tensors = {name: value for name, value in found[0].items() if str(name).startswith(_PARTS) and is_weight(value)}
    config, notes = _config_beside(path), []
    if config is None:
        config = _config_from_shapes(tensors, what)
        notes.append(
            f"The autoencoder's file does not say its scaling factor: {SCALING_FACTOR} is assumed, as in "
            "Stable Diffusion 1.x and 2.x."
        )
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    weights = _renamed(tensors, vae, what)
    if bad := not_finite(weights):
        raise ValueError(f"{what} is damaged: the weights {bad} have NaN or infinite values.")
    vae.load_state_dict(
        {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in weights.items()}, assign=True
    )
    return vae.requires_grad_(True).eval(), notes


def _config_beside(path: Path) -> dict[str, Any] | None:
    """Reads the configuration of an `AutoencoderKL` that lies beside its weights, if there is one."""
    file = path.with_name("config.json")
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"`vae`: {file} is damaged: {describe_error(error)}") from error
    return config if isinstance(config, dict) and config.get("_class_name") == "AutoencoderKL" else None


def _config_from_shapes(tensors: Mapping[str, torch.Tensor], what: str) -> dict[str, Any]:
    """Reads off what names and shapes say; the rest is Stable Diffusion's."""
    pattern = re.compile(r"encoder\.(?:down|down_blocks)\.(\d+)\.(?:block|resnets)\.(\d+)\.conv1\.weight")
    blocks = {(int(match[1]), int(match[2])): match[0] for match in map(pattern.fullmatch, tensors) if match}
    levels = len({level for level, _ in blocks})
    try:
        widths = tuple(tensors[blocks[level, 0]].shape[0] for level in range(levels))
        config = {
            "in_channels": tensors[_FIRST_LAYER].shape[1],
            "out_channels": tensors["decoder.conv_out.weight"].shape[0],
            "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
            "layers_per_block": len(blocks) // levels,
        }
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{what} does not hold a whole autoencoder: {describe_error(error)}.") from error
    if any(width % _NORM_GROUPS for width in widths):
        raise ValueError(
            f"{what} has layers of {widths} channels, which are not multiples of {_NORM_GROUPS}: it is not of Stable "
            "Diffusion's kind. Put its config.json beside it, or give the folder of the autoencoder."
        )
    return {
        **config,
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": _NORM_GROUPS,
        "sample_size": SAMPLE_SIZE,
        "scaling_factor": SCALING_FACTOR,
        "mid_block_add_attention": any(re.match(r"encoder\.mid.*\.att", name) for name in tensors),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def _renamed(tensors: Mapping[str, torch.Tensor], vae: AutoencoderKL, what: str) -> dict[str, torch.Tensor]:
    """Returns the tensors under diffusers' names, each of the shape that it has there."""
    expected = vae.state_dict()
    levels = len(vae.config.block_out_channels)
    weights, used, problems = {}, set(), []
    for name, wanted in expected.items():
        candidates = (name, _old_name(name), _ldm_name(name, levels))
        key = next((candidate for candidate in candidates if candidate in tensors), None)
        if key is None:
            problems.append(f"{candidates[-1]} is missing")
            continue
        used.add(key)
        tensor = tensors[key]
        if tensor.ndim > wanted.ndim and tensor.numel() == wanted.numel():
            tensor = tensor.reshape(wanted.shape)  # in latent diffusion, projections of attention are convolutions
        if tensor.shape != wanted.shape:
            problems.append(f"{key} is of another shape than {tuple(wanted.shape)}")
        weights[name] = tensor
    problems += [f"{key} is unknown" for key in sorted(set(tensors) - used)]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{what} does not hold the autoencoder that it seems to: {', '.join(problems[:5])}{more}.")
    return weights


def _old_name(name: str) -> str:
    """Returns the name of a projection of attention in old files of diffusers."""
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def _ldm_name(name: str, levels: int) -> str:
    """Returns the name of a tensor of `AutoencoderKL` in latent diffusion."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    for new, old in _ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda match: f"up.{levels - 1 - int(match[1])}.block.", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda match: f"up.{levels - 1 - int(match[1])}.upsample.", name
    )
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
