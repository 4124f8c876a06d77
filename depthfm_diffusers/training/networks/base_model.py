"""The pipeline to train: from Stable Diffusion, from a DepthFM, or with a new network around an autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ...checkpoints.model_folder import load_pipeline, resolve_model
from ...checkpoints.networks import load_model
from ...models.prompt_embedding import PromptEmbedding, embed_empty_prompt
from ...pipelines.depthfm.further_channels import num_completion_channels
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...schedulers.scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler
from ...utils.errors import describe_error
from ..lora import add_lora
from ..settings import LoraSettings, MemorySettings

CONV_IN_INITS = ("duplicate", "zero")
START_DISTRIBUTIONS = ("image", "noise")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
Scheduler = TypeVar("Scheduler", bound=SchedulerMixin)

# The components of a Stable Diffusion folder that are used, with the classes that they may have there. Its scheduler,
# safety checker and the rest are not looked at.
SD_COMPONENTS = {
    "unet": (UNet2DConditionModel, ("UNet2DConditionModel",)),
    "vae": (AutoencoderKL, ("AutoencoderKL",)),
    "text_encoder": (CLIPTextModel, ("CLIPTextModel",)),
    "tokenizer": (CLIPTokenizer, ("CLIPTokenizer", "CLIPTokenizerFast")),
}


def build_pipeline(
    base: str | None = None,
    vae: str | None = None,
    unet_config: str | None = None,
    conv_in_init: str = "duplicate",
    noise_augmentation_step: int | None = None,
    start: str = "image",
) -> DepthFMPipeline:
    """Builds the pipeline to train, in float32 on the CPU.

    Args:
        base: A folder in diffusers' format, or a Hub repository: Stable Diffusion in the layout of 1.5 or 2.1 (see
            `pipeline_from_stable_diffusion`), or DepthFM; its `model_index.json` tells which.
        vae: Instead of `base`, with `unet_config`: folder of an `AutoencoderKL`.
        unet_config: Instead of `base`, with `vae`: JSON configuration of a new UNet.
        conv_in_init: How Stable Diffusion's first layer grows, see `grow_conv_in`.
        noise_augmentation_step: Cosine step of the source's noise; `None`: what a DepthFM `base` has, else 400.
        start: `"image"`, or `"noise"` to start the flow from pure noise, see `source_noise_step`.

    Raises:
        FileNotFoundError: If a folder, a file or a component is missing.
        ValueError: If the arguments exclude each other, or a component, which is named, cannot be used.
    """
    if (base is None) != (vae is not None and unet_config is not None) or (base is not None and (vae or unet_config)):
        raise ValueError(
            "Give either `base`, or both `vae` and `unet_config`; got "
            f"base={base!r}, vae={vae!r}, unet_config={unet_config!r}."
        )
    if start == "noise" and noise_augmentation_step is not None:
        raise ValueError(
            "`start='noise'` replaces the image by noise: `noise_augmentation_step` has no meaning there, got "
            f"{noise_augmentation_step}."
        )
    if base is None:
        pipe = _pipeline_from_config(str(vae), str(unet_config))
    elif is_depthfm(base):
        pipe = load_pipeline(resolve_model(base), device="cpu", dtype=torch.float32)
    else:
        pipe = pipeline_from_stable_diffusion(base, conv_in_init)
    config = pipe.scheduler.config
    step = config.noise_augmentation_step if noise_augmentation_step is None else noise_augmentation_step
    step = source_noise_step(start, step, config.num_train_timesteps)
    pipe.scheduler = FlowMatchingImageToDepthScheduler.from_config(config, noise_augmentation_step=step)
    return pipe


def prepare_pipeline(
    pipe: DepthFMPipeline, memory: MemorySettings, lora: LoraSettings | None, device: torch.device
) -> None:
    """Prepares a pipeline for the training of its UNet, in place.

    Args:
        pipe: Its autoencoder and embedding are frozen and moved to `device`, as is its image encoder, if it has one.
        memory: Applied to the UNet; the memory format also to the autoencoder.
        lora: The UNet is frozen and gets these adapters; `None`: all of it is trained.
        device: Where the frozen parts run.
    """
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.requires_grad_(False).to(device)
    pipe.prompt_embedding.requires_grad_(False).to(device)
    if pipe.image_encoder is not None:
        pipe.image_encoder.requires_grad_(False).to(device)
        if memory.gradient_checkpointing:
            pipe.image_encoder.enable_gradient_checkpointing()
    memory.apply_memory_format(pipe.vae)
    memory.apply(pipe.unet)
    if lora is not None:
        add_lora(pipe.unet, lora)


def source_noise_step(start: str, noise_augmentation_step: int, num_train_timesteps: int = 1000) -> int:
    """Returns the scheduler's `noise_augmentation_step` for a start distribution (the ablation of arXiv 2403.13788).

    `"image"` starts from the image's latent with the noise of a step. `"noise"` starts from pure Gaussian noise, which
    is the last step of the cosine schedule: there the signal's weight is 6e-17, too small to change a float32 number
    near 1. The step is saved in the scheduler's configuration, so that inference starts in the same way.

    Args:
        start: `"image"` or `"noise"`.
        noise_augmentation_step: Step used by `"image"`.
        num_train_timesteps: Last step of the schedule, used by `"noise"`.

    Raises:
        ValueError: If `start` is neither.
    """
    if start not in START_DISTRIBUTIONS:
        raise ValueError(f"The start distribution must be one of {START_DISTRIBUTIONS}, got {start!r}.")
    return num_train_timesteps if start == "noise" else noise_augmentation_step


def pipeline_from_stable_diffusion(base: str, conv_in_init: str = "duplicate") -> DepthFMPipeline:
    """Makes Stable Diffusion into a pipeline whose UNet is to be trained to regress the velocity x_1 - x_0.

    The UNet's first layer grows to take the image's latent too, and the autoencoder is kept with its scaling factor.
    The text encoder embeds the empty prompt and is not part of the result.

    It does not matter what the base predicted (`prediction_type`: the noise, v, or the sample), nor what its scheduler
    and its times in 0..999 were: training regresses another quantity of the same shape from the first step on, and the
    base's weights are its initialisation.

    Args:
        base: A folder with `unet`, `vae`, `text_encoder` and `tokenizer` and a `model_index.json`, or the name of a
            Hub repository, of which these are fetched. Weights are safetensors, or `.bin` files of tensors only;
            of a folder that has none but `fp16` files, those.
        conv_in_init: See `grow_conv_in`.

    Raises:
        FileNotFoundError: If there is no such folder, or a component is missing in it.
        ValueError: If it is a model of another kind, or one of its files is damaged or incomplete.
    """
    loaded = load_stable_diffusion(base)
    unet = loaded["unet"]
    grow_conv_in(unet, conv_in_init)
    prompt_embedding = embed_empty_prompt(loaded["tokenizer"], loaded["text_encoder"])
    return DepthFMPipeline(
        unet=unet,
        vae=loaded["vae"],
        scheduler=FlowMatchingImageToDepthScheduler(),
        prompt_embedding=prompt_embedding,
    )


def load_stable_diffusion(base: str) -> dict[str, Any]:
    """Loads the `SD_COMPONENTS` of a Stable Diffusion, in float32 on the CPU.

    Args:
        base: See `pipeline_from_stable_diffusion`.

    Raises:
        FileNotFoundError: If there is no such folder, or a component is missing in it.
        ValueError: If it is a model of another kind, or one of its files is damaged or incomplete.
    """
    index = _read_index(base)
    other = sorted(name for name in ("text_encoder_2", "text_encoder_3", "transformer", "prior") if index.get(name))
    if other:
        raise ValueError(
            f"base {base}: a model with {' and '.join(other)} is not of Stable Diffusion 1.5's or 2.1's layout (SDXL "
            "and later ones cannot be used)."
        )
    for name in SD_COMPONENTS:  # all of them before the first gigabyte is read
        _check_component(base, index, name)
    path = Path(base).expanduser()
    source = str(path) if path.is_dir() else base
    loaded = {
        name: load_model(cls, f"base {base}: its {name}", source, name) for name, (cls, _) in SD_COMPONENTS.items()
    }
    _check_plain_unet(base, loaded["unet"])
    taken, width = loaded["unet"].config.cross_attention_dim, loaded["text_encoder"].config.hidden_size
    if taken != width:
        raise ValueError(
            f"base {base}: its text_encoder gives embeddings of width {width}, but its unet attends to width {taken}: "
            "they are not of one model."
        )
    return loaded


def grow_conv_in(unet: UNet2DConditionModel, init: str = "duplicate") -> None:
    """Doubles the input channels of a UNet in place: from the latent x to cat[x_t, c].

    Args:
        unet: UNet with as many input as output channels.
        init: `"duplicate"`: the weights are halved and repeated, so that cat[x, x] gives the same output as x before.
            `"zero"`: the condition's weights are 0, so that cat[x, anything] gives the same output as x before.

    Raises:
        ValueError: If `init` is neither, or the UNet has another number of input channels.
    """
    if init not in CONV_IN_INITS:
        raise ValueError(f"`init` must be one of {CONV_IN_INITS}, got {init!r}.")
    channels = unet.config.in_channels
    if channels != unet.config.out_channels:
        raise ValueError(
            f"`unet` must have as many input as output channels to grow, got {channels} and "
            f"{unet.config.out_channels}."
        )
    add_input_channels(unet, channels)
    if init == "duplicate":
        with torch.no_grad():
            first, second = unet.conv_in.weight.chunk(2, dim=1)
            first /= 2
            second.copy_(first)


def add_input_channels(unet: UNet2DConditionModel, channels: int, position: int | None = None) -> None:
    """Adds input channels to a UNet in place, with weights 0: whatever they hold, the output is the same as before.

    Args:
        unet: Any UNet.
        channels: How many channels are added.
        position: Index of the first new channel; `None`: after those that it has.
    """
    old = unet.conv_in
    position = old.in_channels if position is None else position
    total = old.in_channels + channels
    new = torch.nn.Conv2d(
        total, old.out_channels, old.kernel_size, padding=old.padding, device=old.weight.device, dtype=old.weight.dtype
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :position] = old.weight[:, :position]
        new.weight[:, position + channels :] = old.weight[:, position:]
    new.bias = old.bias
    unet.conv_in = new
    unet.register_to_config(in_channels=total)


def prepare_completion(pipe: DepthFMPipeline, completion: bool, lora: bool) -> None:
    """Makes a pipeline's UNet take partial depth, in place; it predicts the same as before until it is trained.

    The new channels come right after the two latents, whether there are features of an image encoder or not.

    Args:
        pipe: The pipeline.
        completion: Whether the model is trained for completion.
        lora: Whether adapters alone are trained.

    Raises:
        ValueError: If the pipeline takes partial depth already and is not to be trained for it, or the other way
            round and its UNet is not trained.
    """
    if pipe.takes_partial_depth and not completion:
        raise ValueError(
            "The model completes depth, and would forget it without partial depth in training: give --completion "
            "(with --completion_dropout 1 to train it on images alone)."
        )
    if completion and not pipe.takes_partial_depth:
        if lora:
            raise ValueError(
                "--completion: --lora_rank freezes the UNet, which must learn to read partial depth: leave out "
                "--lora_rank, or start from a model that was trained with --completion."
            )
        add_input_channels(pipe.unet, num_completion_channels(pipe.vae), 2 * pipe.vae.config.latent_channels)


def _pipeline_from_config(vae: str, unet_config: str) -> DepthFMPipeline:
    """Builds a new UNet around an autoencoder."""
    try:
        config = json.loads(Path(unet_config).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise FileNotFoundError(f"unet_config {unet_config} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"unet_config {unet_config} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"unet_config {unet_config} must be a JSON object, got a {type(config).__name__}.")
    unet = UNet2DConditionModel.from_config(config)
    autoencoder = _load_autoencoder(vae)
    channels = autoencoder.config.latent_channels
    if (unet.config.in_channels, unet.config.out_channels) != (2 * channels, channels):
        raise ValueError(
            f"unet_config {unet_config}: a UNet for the {channels} latent channels of {vae} has {2 * channels} input "
            f"and {channels} output channels, not {unet.config.in_channels} and {unet.config.out_channels}."
        )
    return DepthFMPipeline(
        unet=unet,
        vae=autoencoder,
        scheduler=FlowMatchingImageToDepthScheduler(),
        # Never trained: the network gets no text. One token of zeros keeps the layout.
        prompt_embedding=PromptEmbedding(num_tokens=1, dim=unet.config.cross_attention_dim),
    )


def _load_autoencoder(vae: str) -> AutoencoderKL:
    folder = Path(vae).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"vae {vae} is not the folder of an autoencoder: it has no config.json.")
    return load_model(AutoencoderKL, f"vae {vae}", str(folder))


def is_depthfm(base: str) -> bool:
    """Returns whether a model folder or Hub repository is a DepthFM, by its `model_index.json`."""
    return _read_index(base).get("_class_name") in ("DepthFMPipeline", ["pipeline", "DepthFMPipeline"])


def _read_index(base: str) -> dict[str, Any]:
    """Reads `model_index.json`, fetched if `base` is not a folder."""
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise FileNotFoundError(
                f"base {base}: not a model folder in diffusers' format, model_index.json is missing."
            )
    elif path.exists():
        raise ValueError(
            f"base {base} is a file, not a folder in diffusers' format. Convert it: a DepthFM checkpoint with "
            "`depthfm convert`, one of Stable Diffusion with StableDiffusionPipeline.from_single_file and "
            "save_pretrained."
        )
    try:
        return DiffusionPipeline.load_config(str(path) if path.is_dir() else base)
    except OSError as error:
        message = describe_error(error)
        if path.is_dir():
            raise ValueError(f"base {base}: model_index.json is damaged: {message}") from error
        raise FileNotFoundError(
            f"base {base}: there is no such folder, and the Hub repository could not be fetched: {message}"
        ) from error


def _check_component(base: str, index: dict[str, Any], name: str) -> None:
    """Checks that a Stable Diffusion has a component, of a class that `SD_COMPONENTS` accepts."""
    accepted = SD_COMPONENTS[name][1]
    class_name = (index.get(name) or [None, None])[1]
    if class_name is None:
        raise FileNotFoundError(f"base {base}: its {name} is missing, model_index.json names none.")
    if class_name not in accepted:
        raise ValueError(
            f"base {base}: its {name} is a {class_name}; a {' or '.join(accepted)} is needed (Stable Diffusion 1.5 or "
            "2.1)."
        )
    path = Path(base).expanduser()
    if path.is_dir() and not (path / name).is_dir():
        raise FileNotFoundError(f"base {base}: its {name} is missing, there is no folder {path / name}.")


def load_schedule(base: str, cls: type[Scheduler]) -> Scheduler:
    """Loads the noise levels of a Stable Diffusion as a scheduler of another class.

    Raises:
        ValueError: If its scheduler cannot be read, or its model predicts something other than the noise, v or the
            sample.
    """
    path = Path(base).expanduser()
    try:
        schedule = cls.from_pretrained(str(path) if path.is_dir() else base, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise ValueError(f"base {base}: its scheduler cannot be loaded: {describe_error(error)}") from error
    if schedule.config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"base {base}: its scheduler has prediction_type {schedule.config.prediction_type!r}; known are "
            f"{PREDICTION_TYPES}."
        )
    return schedule


def _check_plain_unet(base: str, unet: UNet2DConditionModel) -> None:
    """Checks that a UNet takes a latent of 4 channels, a time and an embedding, and nothing else."""
    config = unet.config
    extra = [
        f"{name}={config[name]!r}"
        for name in ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")
        if config.get(name) is not None
    ]
    if extra:
        raise ValueError(
            f"base {base}: its unet takes more than an image and a prompt ({', '.join(extra)}): SDXL, upscalers "
            "and models with class embeddings cannot be used, only Stable Diffusion 1.5's and 2.1's layout."
        )
    if config.in_channels == 8:
        raise ValueError(
            f"base {base}: its unet has 8 input channels already. The folder does not record which of them are the "
            "image (the first in Marigold, the last in DepthFM): start from the Stable Diffusion that it was made "
            "from, or from a DepthFM folder."
        )
    if (config.in_channels, config.out_channels) != (4, 4):
        raise ValueError(
            f"base {base}: its unet has {config.in_channels} input and {config.out_channels} output channels, not 4 "
            "and 4 (9 input channels are an inpainting model's): start from the plain model."
        )
