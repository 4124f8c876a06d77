"""Conversion of the DepthFM authors' checkpoints into diffusers folders."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.utils import logging

from ..models.prompt_embedding import PromptEmbedding
from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ..schedulers.scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler
from ..utils.errors import describe_error
from .ldm_autoencoder import load_autoencoder_file
from .ldm_checkpoint import LdmCheckpoint, load_checkpoint
from .ldm_unet import convert_unet_state_dict, unet_config_from_hparams
from .model_files import check_pickled_weights, check_weights
from .model_folder import halve_weights, save_pipeline

logger = logging.get_logger(__name__)

_AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def convert_checkpoint(
    checkpoint: str | Path,
    vae: str | Path,
    output: str | Path,
    *,
    rescale_self_attention: bool = False,
    trust_pickle: bool = False,
    hparams: str | Path | None = None,
    empty_text_embedding: str | Path | None = None,
    text_encoder: str | Path | None = None,
    noise_augmentation_step: int | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    on_assumption: Callable[[str], object] = logger.warning,
) -> Path:
    """Converts weights of the DepthFM authors to a complete diffusers folder, which needs nothing else to run.

    The folder has float32 safetensors. It is written beside `output` under a name that starts with a dot and contains
    `.incomplete-`, and moved into place when complete: whatever happens, `output` is absent, complete, or what it was
    before.

    Args:
        checkpoint: The authors' file, or one with the UNet alone; see `load_checkpoint`.
        vae: The autoencoder that the checkpoint was trained with (Stable Diffusion's, for the authors' weights). A
            folder of an `AutoencoderKL` or `AutoencoderTiny` in diffusers' format, a model folder that has one in its
            subfolder `vae`, or a single file, see `load_autoencoder_file`.
        output: The folder to write. It may exist if it is empty.
        rescale_self_attention: Whether the pipeline rescales self-attention logits by default, as the authors' code
            does where xformers is not installed; see `models.attention_processor`. The setting is saved, and can be
            changed when the folder is loaded.
        trust_pickle: Whether to read `checkpoint`, and a file `vae`, by unrestricted unpickling, which can run any
            code that they contain.
        hparams: See `load_checkpoint`, as for the next three.
        empty_text_embedding: File with the embedding of the empty prompt.
        text_encoder: Stable Diffusion folder that makes the embedding of the empty prompt.
        noise_augmentation_step: Step of the source's noise.
        variant: `"fp16"` to write the weights a second time, in float16, for `from_pretrained(..., variant="fp16")`.
        overwrite: Whether to replace `output` if it is an earlier model folder. The old one is removed only when the
            new one is complete.
        on_assumption: Called with a sentence for each thing that the files do not say and that was assumed.

    Returns:
        Path of the folder.

    Raises:
        FileExistsError: If `output` exists and `overwrite` is not set, or if it exists and is not a model folder.
        FileNotFoundError: If a file or folder does not exist.
        ImportError: If objects in a trusted checkpoint need a package that is not installed.
        PermissionError: If the folder cannot be created.
        ValueError: If the checkpoint or the autoencoder cannot be read or converted, or they do not fit together, or
            if a weight is beyond the range of float16 and `variant` is `"fp16"`.
    """
    if variant not in (None, "fp16"):
        raise ValueError(f"`variant` must be 'fp16' or None, got {variant!r}.")
    output = Path(output).expanduser().resolve()
    _check_output(output, overwrite, Path(checkpoint))

    loaded = load_checkpoint(
        checkpoint,
        trust_pickle=trust_pickle,
        hparams=hparams,
        empty_text_embedding=empty_text_embedding,
        text_encoder=text_encoder,
        noise_augmentation_step=noise_augmentation_step,
    )
    autoencoder, notes = _load_autoencoder(Path(vae), trust_pickle)
    pipeline = _build_pipeline(loaded, autoencoder, rescale_self_attention)
    for note in (*loaded.notes, *notes):
        on_assumption(note)
    with _moved_into_place(output) as folder:
        save_pipeline(pipeline, folder)
        if variant == "fp16":
            try:
                halve_weights(pipeline)
            except ValueError as error:
                raise ValueError(f"`variant` 'fp16': {error} Convert without `variant`.") from error
            save_pipeline(pipeline, folder, variant)
    logger.info(f"Converted {checkpoint} to {output}.")
    return output


def _build_pipeline(
    checkpoint: LdmCheckpoint, vae: AutoencoderKL | AutoencoderTiny, rescale_self_attention: bool
) -> DepthFMPipeline:
    """Makes the pipeline of a checkpoint and an autoencoder, in float32 on the CPU."""
    config = unet_config_from_hparams(checkpoint.hparams)
    weights = convert_unet_state_dict(checkpoint.state_dict, config)
    width = checkpoint.empty_text_embedding.shape[-1]
    if width != config["cross_attention_dim"]:
        raise ValueError(
            f"`empty_text_embedding` has width {width}, but `ldm_hparams.context_dim` is "
            f"{config['cross_attention_dim']}."
        )
    channels = vae.config.latent_channels
    if (config["in_channels"], config["out_channels"]) != (2 * channels, channels):
        raise ValueError(
            f"The checkpoint's network has {config['in_channels']} input and {config['out_channels']} output channels "
            f"(`ldm_hparams.in_channels`, `out_channels`), but with the {channels} latent channels of `vae` it needs "
            f"{2 * channels} and {channels}."
        )

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    # Copies, because tensors of a checkpoint may share memory or be mapped from the file.
    unet.load_state_dict(
        {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in weights.items()}, assign=True
    )
    return DepthFMPipeline(
        unet=unet.requires_grad_(True).eval(),
        vae=vae,
        scheduler=FlowMatchingImageToDepthScheduler(noise_augmentation_step=checkpoint.noising_step),
        prompt_embedding=PromptEmbedding.from_tensor(checkpoint.empty_text_embedding).eval(),
        default_num_inference_steps=2,
        default_processing_resolution=640,
        rescale_self_attention=rescale_self_attention,
    )


def find_autoencoder(path: Path) -> Path:
    """Returns where an autoencoder is: the path itself, of a file or a folder, or its subfolder `vae`.

    Raises:
        FileNotFoundError: If there is none.
    """
    if path.is_file():
        return path
    folder = next((f for f in (path, path / "vae") if (f / "config.json").is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"`vae` {path} is neither a file nor a folder with an autoencoder: it has neither config.json nor "
            "vae/config.json."
        )
    return folder


def _load_autoencoder(path: Path, trust_pickle: bool) -> tuple[AutoencoderKL | AutoencoderTiny, list[str]]:
    """Loads an autoencoder in float32 from its folder, the subfolder `vae` of a model folder, or a single file.

    Also returns what was assumed of a single file.
    """
    folder = find_autoencoder(path)
    if folder.is_file():
        return load_autoencoder_file(folder, trust_pickle)
    try:
        class_name = json.loads((folder / "config.json").read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"`vae`: {folder / 'config.json'} is damaged: {describe_error(error)}") from error
    if class_name not in _AUTOENCODERS:
        raise ValueError(f"`vae` must be one of {', '.join(_AUTOENCODERS)}, but {folder} holds {class_name!r}.")
    half_only = (folder / "diffusion_pytorch_model.fp16.safetensors").is_file() and not any(
        folder.glob("diffusion_pytorch_model.[bs]*")
    )
    variant = "fp16" if half_only else None
    try:
        check_pickled_weights(folder)
        vae = _AUTOENCODERS[class_name].from_pretrained(
            folder, dtype=torch.float32, variant=variant, local_files_only=True
        )
        check_weights(folder, vae, variant)
    except Exception as error:
        raise ValueError(f"`vae` {folder} could not be loaded: {describe_error(error)}") from error
    return vae, []


def _check_output(output: Path, overwrite: bool, checkpoint: Path) -> None:
    """Checks the output folder before any work is done."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if not overwrite:
            raise FileExistsError(f"`output` {output} exists. Choose another, or set `overwrite` (`--overwrite`).")
        if not (output / "model_index.json").is_file():
            raise FileExistsError(
                f"`output` {output} is not a model folder: it has no model_index.json. It is not overwritten."
            )
        if output in checkpoint.expanduser().resolve().parents:
            raise FileExistsError(f"`output` {output} contains the checkpoint. It is not overwritten.")
    existing = next(parent for parent in output.parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(
            f"`output` {output} cannot be created: {existing} is not a folder that can be written to."
        )


@contextmanager
def _moved_into_place(output: Path) -> Iterator[Path]:
    """Yields a folder to write to. On success it becomes `output` and replaces what was there; else it is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.incomplete-", dir=output.parent))
    try:
        folder = staging / "new"
        yield folder
        if output.exists():
            old = staging / "old"
            os.replace(output, old)
            try:
                os.replace(folder, output)
            except BaseException:
                os.replace(old, output)
                raise
        else:
            os.replace(folder, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
