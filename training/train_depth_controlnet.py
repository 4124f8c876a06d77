"""Trains a depth ControlNet on DepthFM's depth: `accelerate launch training/train_depth_controlnet.py --help`.

The result in `--output_dir` is a ControlNet that `ControlNetModel.from_pretrained` loads. docs/synthesis.md explains
the flags.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline

from depthfm_diffusers import default_model_path
from depthfm_diffusers.checkpoints.model_folder import (
    load_pipeline,
    resolve_model,
)
from depthfm_diffusers.control_image import CONTROL_MODES, DEFAULT_CONTROL_PERCENTILES
from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.training.config import (
    add_cache_flags,
    add_hub_flags,
    add_lora_flags,
    add_memory_flags,
    base_parser,
    parse_with_config,
    positive_int,
    share,
)
from depthfm_diffusers.training.data.controlnet_data import (
    CachedControl,
    ControlImages,
    DepthControl,
    PromptTokens,
    cache_control,
    encode_control_batch,
    prompt_embeddings,
)
from depthfm_diffusers.training.data.depth_transforms import AugmentationConfig
from depthfm_diffusers.training.data.sampling import EpochBatchSampler
from depthfm_diffusers.training.data.sources import (
    MixedFrames,
    has_weights,
    open_captioned_images,
)
from depthfm_diffusers.training.loop import (
    COUNT,
    Trainer,
    build_accelerator,
    check_can_validate,
    log_pictures,
    write_run_config,
)
from depthfm_diffusers.training.lora import (
    TARGET_MODULES,
    checkpoint_trained_only,
)
from depthfm_diffusers.training.model_card import (
    check_hub_access,
    push_to_hub,
    write_controlnet_card,
)
from depthfm_diffusers.training.networks.base_model import (
    load_schedule,
    load_stable_diffusion,
)
from depthfm_diffusers.training.networks.controlnet_model import (
    DEFAULT_CONDITIONING_CHANNELS,
    build_controlnet,
    predict_with_control,
    save_controlnet,
)
from depthfm_diffusers.training.objectives.denoising import (
    DiffusionDraws,
    denoising_loss,
)
from depthfm_diffusers.training.validation.controlnet_validation import ControlValidation

logger = get_logger(__name__)

DATA_HELP = (
    "Images, with or without captions: WebDataset shards (.tar), Parquet files, folders of them, folders of images; "
    "or JSON objects with a path and settings (docs/synthesis.md)."
)


def build_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = base_parser(__doc__.splitlines()[0], data_help=DATA_HELP)
    # What published depth ControlNets were trained with: no averaged weights, a low and constant learning rate.
    parser.set_defaults(ema_decay=0.0, learning_rate=1e-5, lr_scheduler="constant_with_warmup", train_batch_size=4)
    start = parser.add_argument_group("start from")
    start.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        help="Stable Diffusion (1.5, 2.1) that the ControlNet is for.",
    )
    start.add_argument("--controlnet", default=None, help="ControlNet to train on; default: a new one of the UNet.")
    start.add_argument(
        "--conditioning_embedding_out_channels",
        type=positive_int,
        nargs="+",
        default=None,
        help=f"Widths of a new ControlNet's image encoder; default: {DEFAULT_CONDITIONING_CHANNELS}.",
    )
    control = parser.add_argument_group("control images")
    control.add_argument("--depth_model", default=str(default_model_path()), help="DepthFM that estimates the depth.")
    control.add_argument("--depth_steps", type=positive_int, default=None, help="Its steps; default: the model's.")
    control.add_argument(
        "--control_mode", choices=CONTROL_MODES, default="disparity", help="disparity: near is white."
    )
    control.add_argument(
        "--control_percentiles",
        type=float,
        nargs=2,
        default=list(DEFAULT_CONTROL_PERCENTILES),
        metavar=("LOW", "HIGH"),
        help="Percentiles that become black and white.",
    )
    text = parser.add_argument_group("prompts")
    text.add_argument("--proportion_empty_prompts", type=share, default=0.5, help="Captions left out, as a share.")
    size = parser.add_argument_group("size")
    size.add_argument(
        "--resolution", type=positive_int, nargs=2, metavar=("H", "W"), help="Resize images to cover this."
    )
    add_cache_flags(parser)
    add_lora_flags(parser, "Adapters of this rank for what comes trained; 0: train it all.", TARGET_MODULES)
    add_memory_flags(parser)
    result = parser.add_argument_group("result")
    result.add_argument("--validation_images", type=positive_int, default=8, help="Images whose depth is followed.")
    result.add_argument("--validation_inference_steps", type=positive_int, default=20, help="Steps of each.")
    result.add_argument("--validation_guidance_scale", type=float, default=7.5, help="Weight of the prompt in each.")
    add_hub_flags(result)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line, and the YAML file it may name."""
    parser = build_parser()
    args = parse_with_config(parser, argv)
    if args.controlnet is not None and args.conditioning_embedding_out_channels is not None:
        parser.error("--conditioning_embedding_out_channels is for a new ControlNet: leave it out with --controlnet")
    low, high = args.control_percentiles
    if not 0 <= low < high <= 100:
        parser.error(f"--control_percentiles must be 0 <= LOW < HIGH <= 100, got {low} {high}")
    return args


@dataclass(frozen=True)
class Samples:
    """What the training loop draws from.

    Attributes:
        dataset: Images that each step encodes, or cached samples.
        sampler: Draws the batches' `(epoch, index)`.
        encode: Adds to a batch what it lacks: the image's latent, and the control image.
        empty_tokens: Tokens of the empty prompt.
        size: Height and width of the images, pixels.
    """

    dataset: ControlImages | CachedControl
    sampler: EpochBatchSampler
    encode: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    empty_tokens: torch.Tensor
    size: tuple[int, int]


def open_images(args: argparse.Namespace) -> tuple[MixedFrames, list[int], list[int]]:
    """Opens the data: all images, and the indices of those to train on and of those held out for validation."""
    images = open_captioned_images(args.train_data, streaming=args.streaming)
    return images, *split_by_scene(images.scenes, args.validation_fraction)


def prepare_samples(
    args: argparse.Namespace,
    images: MixedFrames,
    train: list[int],
    base: StableDiffusionPipeline,
    schedule: DDPMScheduler,
    control: DepthControl | None,
    accelerator: Accelerator,
) -> Samples:
    """Builds the samples of the training images and their order; encodes them first if they are to be cached.

    Args:
        args: The script's flags.
        images: All images.
        train: Indices of those to train on.
        base: Its autoencoder encodes images, its tokenizer captions.
        schedule: Noise levels to draw from.
        control: Makes the control images; `None`: samples have none.
        accelerator: Of the run.
    """
    estimator = None if control is None else control.estimator
    draws = DiffusionDraws(
        schedule.config.num_train_timesteps, base.vae.config.latent_channels, args.proportion_empty_prompts
    )
    tokens = PromptTokens(base.tokenizer)
    dataset = ControlImages(
        images,
        train,
        AugmentationConfig(flip=args.flip, min_crop=args.min_crop, jitter=args.jitter),
        tokens,
        draws,
        args.resolution,
        base.vae_scale_factor,
        args.seed,
        depth_noise=estimator and (estimator.vae.config.latent_channels, estimator.vae_scale_factor),
        skip_bad_images=args.bad_frames == "skip",
    )
    size = dataset.size
    sources = images.source_indices(train, has_weights(args.train_data))
    sampler = EpochBatchSampler(sources, args.train_batch_size, args.seed, accelerator.num_processes)
    if args.cache_latents > 0:
        folder = cache_control(
            Path(args.latent_cache_dir or Path(args.output_dir) / "latents"),
            base.vae,
            control,
            dataset,
            variants=args.cache_latents,
            batch_size=args.train_batch_size,
            accelerator=accelerator,
        )
        dataset = CachedControl(folder, len(dataset), args.cache_latents, draws, args.seed)

    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch if "image_latent" in batch else encode_control_batch(base.vae, control, batch)

    return Samples(dataset, sampler, encode, tokens(""), size)


def load_base(name: str) -> StableDiffusionPipeline:
    """Stable Diffusion, in float32 on the CPU."""
    return StableDiffusionPipeline(
        **load_stable_diffusion(name),
        scheduler=load_schedule(name, DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def freeze_base(base: StableDiffusionPipeline, args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Moves the base to the device; what runs in each step gets the dtype of mixed precision."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    for module in (base.vae, base.text_encoder, base.unet):
        module.requires_grad_(False).eval().to(accelerator.device)
    if dtype != torch.float32:
        # The autoencoder keeps its precision: what it makes is the target.
        base.text_encoder.to(dtype)
        base.unet.to(dtype)
    if args.channels_last:
        base.unet.to(memory_format=torch.channels_last)
        base.vae.to(memory_format=torch.channels_last)
    if args.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    if args.enable_xformers_memory_efficient_attention:
        base.unet.enable_xformers_memory_efficient_attention()


def prepare_depth_control(args: argparse.Namespace, device: torch.device) -> DepthControl:
    """The depth estimator, frozen and on the device, and what is made of its depth."""
    estimator = load_pipeline(resolve_model(args.depth_model), device=str(device), dtype=torch.float32)
    estimator.set_progress_bar_config(disable=True)
    for module in (estimator.unet, estimator.vae, estimator.prompt_embedding):
        module.requires_grad_(False)
    return DepthControl(estimator, args.depth_steps, args.control_mode, tuple(args.control_percentiles))


def main(argv: list[str] | None = None) -> None:
    """Runs the training; `argv` defaults to the command line."""
    args = parse_args(argv)
    hub_model_id = args.hub_model_id or Path(args.output_dir).name
    accelerator = build_accelerator(args)
    write_run_config(args, accelerator)
    if args.push_to_hub and accelerator.is_main_process:
        check_hub_access(hub_model_id)

    images, train, held_out = open_images(args)
    check_can_validate(held_out, accelerator)
    base = load_base(args.pretrained_model_name_or_path)
    # Before the UNet that it copies is rounded.
    controlnet = build_controlnet(args, base.unet, base.vae_scale_factor)
    freeze_base(base, args, accelerator)
    control = prepare_depth_control(args, accelerator.device)
    schedule = load_schedule(args.pretrained_model_name_or_path, DDPMScheduler)
    data = prepare_samples(args, images, train, base, schedule, control, accelerator)

    def compute_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        batch = data.encode(batch)
        embedding = prompt_embeddings(base.text_encoder, batch, data.empty_tokens)

        def predict(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return predict_with_control(model, base.unet, noisy, timestep, embedding, batch["control"])

        loss = denoising_loss(schedule, batch, predict)
        return {"loss": loss, f"{COUNT}images_skipped": batch["skipped"].sum()}

    scores: dict[str, float] = {}
    validation = ControlValidation(args, base, control, images, held_out[: args.validation_images], data.size)

    def validate(step: int) -> None:
        if not held_out:
            return
        measured, grid = validation.run(accelerator.unwrap_model(trainer.model))
        scores.update(measured)
        accelerator.log({f"validation/{name}": value for name, value in measured.items()}, step=step)
        logger.info(f"Step {step}: {measured}")
        log_pictures(accelerator, "image | control | generated | its control", grid, step)

    if args.lora_rank:
        checkpoint_trained_only(accelerator)
    trainer = Trainer(args, accelerator, controlnet, data.dataset, data.sampler, compute_loss, validate)
    accelerator.init_trackers("depth_controlnet")
    trainer.run()
    controlnet = trainer.final_model().eval().to(memory_format=torch.contiguous_format)
    if accelerator.is_main_process:
        save_controlnet(args, controlnet, Path(args.output_dir))
        write_controlnet_card(args, scores)
        if args.push_to_hub:
            push_to_hub(Path(args.output_dir), hub_model_id)
    accelerator.end_training()


if __name__ == "__main__":
    main()
