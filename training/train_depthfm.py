"""Trains a UNet into the flow model of DepthFM: `accelerate launch training/train_depthfm.py --help`.

The result in `--output_dir` is a folder that `DiffusionPipeline.from_pretrained` loads, or LoRA weights for one.
docs/train.md explains the flags.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.checkpoints.model_folder import save_pipeline
from depthfm_diffusers.depth_normalization import SKY_RULES, DepthNormalization
from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.training.config import (
    add_cache_flags,
    add_hub_flags,
    add_lora_flags,
    add_memory_flags,
    base_parser,
    fraction,
    non_negative,
    parse_with_config,
    positive_int,
)
from depthfm_diffusers.training.data.depth_transforms import AugmentationConfig
from depthfm_diffusers.training.data.flow_data import (
    CachedLatents,
    FlowDraws,
    FlowFrames,
    cache_latents,
    encode_batch,
)
from depthfm_diffusers.training.data.sampling import EpochBatchSampler
from depthfm_diffusers.training.data.sources import (
    MixedFrames,
    has_weights,
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
    add_lora,
    checkpoint_trained_only,
    save_adapters,
)
from depthfm_diffusers.training.model_card import (
    check_hub_access,
    push_to_hub,
    write_model_card,
)
from depthfm_diffusers.training.networks.base_model import (
    CONV_IN_INITS,
    build_pipeline,
    is_depthfm,
)
from depthfm_diffusers.training.objectives.flow_objective import (
    START_DISTRIBUTIONS,
    TIMESTEP_SAMPLINGS,
    TimeDistribution,
    data_loss,
    decoded_losses,
    predict_velocity,
)
from depthfm_diffusers.training.validation.depth_validation import (
    depth_grid,
    score_frames,
)

logger = get_logger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = base_parser(__doc__.splitlines()[0])
    start = parser.add_argument_group("start from")
    start.add_argument(
        "--pretrained_model_name_or_path", default=None, help="A Stable Diffusion (1.5, 2.1) or a DepthFM folder."
    )
    start.add_argument("--vae", default=None, help="AutoencoderKL folder; with --unet_config, instead of a model.")
    start.add_argument("--unet_config", default=None, help="JSON configuration of a new UNet (8 to 4 channels).")
    start.add_argument(
        "--conv_in_init", choices=CONV_IN_INITS, default="duplicate", help="How Stable Diffusion's first layer grows."
    )
    flow = parser.add_argument_group("flow")
    flow.add_argument("--start", choices=START_DISTRIBUTIONS, default="image", help="What the flow starts from.")
    flow.add_argument(
        "--noise_augmentation_step", type=int, help="Cosine step of the source's noise; default: the model's, or 400."
    )
    flow.add_argument("--sigma_min", type=non_negative, default=0.0, help="Noise that smooths the path.")
    flow.add_argument("--timestep_sampling", choices=TIMESTEP_SAMPLINGS, default="uniform", help="Distribution of t.")
    flow.add_argument("--logit_mean", type=float, default=0.0, help="For logit_normal: mean of logit t.")
    flow.add_argument("--logit_std", type=float, default=1.0, help="For logit_normal: its standard deviation.")
    flow.add_argument("--start_share", type=float, default=0.0, help="Share of samples at exactly t = 0.")
    loss = parser.add_argument_group("losses on the decoded estimate")
    loss.add_argument("--normals_loss_weight", type=non_negative, default=0.0, help="Surface normals; 0: none.")
    loss.add_argument("--gradient_loss_weight", type=non_negative, default=0.0, help="Gradient matching; 0: none.")
    loss.add_argument("--decoded_fraction", type=float, default=1.0, help="Share of a batch that is decoded for them.")
    loss.add_argument("--decoded_min_time", type=fraction, default=0.0, help="Only samples with t at least this.")
    depth = parser.add_argument_group("depth and size")
    depth.add_argument(
        "--depth_quantiles", type=float, nargs=2, default=[0.02, 0.98], metavar=("LOW", "HIGH"), help="Mapped to ±1."
    )
    depth.add_argument("--depth_cap", type=float, default=None, help="Metres; deeper pixels are treated as sky.")
    depth.add_argument("--sky", choices=SKY_RULES, default="mask", help="Sky is left out, or trained on as far.")
    depth.add_argument("--resolution", type=positive_int, nargs=2, metavar=("H", "W"), help="Resize frames to this.")
    add_cache_flags(parser)
    add_lora_flags(parser, "Train adapters of this rank only; 0: all.", TARGET_MODULES)
    add_memory_flags(parser)
    result = parser.add_argument_group("result")
    result.add_argument("--validation_frames", type=positive_int, default=32, help="Frames that are scored.")
    add_hub_flags(result)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line, and the YAML file it may name."""
    parser = build_parser()
    args = parse_with_config(parser, argv)
    from_scratch = args.vae is not None and args.unet_config is not None
    if (args.pretrained_model_name_or_path is None) != from_scratch:
        parser.error("give either --pretrained_model_name_or_path, or both --vae and --unet_config")
    if args.start == "noise" and args.noise_augmentation_step is not None:
        parser.error("--start noise replaces the image by noise: --noise_augmentation_step has no meaning there")
    if not 0.0 < args.decoded_fraction <= 1.0:
        parser.error(f"--decoded_fraction must be in (0, 1], got {args.decoded_fraction}")
    if args.lora_rank and args.pretrained_model_name_or_path is None:
        parser.error("--lora_rank adapts a trained model: give --pretrained_model_name_or_path")
    return args


def prepare_pipeline(args: argparse.Namespace, device: torch.device) -> DepthFMPipeline:
    """The pipeline to train, its autoencoder frozen and on the device, its UNet as the flags want it."""
    pipe = build_pipeline(
        args.pretrained_model_name_or_path,
        vae=args.vae,
        unet_config=args.unet_config,
        conv_in_init=args.conv_in_init,
        noise_augmentation_step=args.noise_augmentation_step,
        start=args.start,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.requires_grad_(False).to(device)
    pipe.prompt_embedding.requires_grad_(False).to(device)
    if args.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if args.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if args.enable_xformers_memory_efficient_attention:
        pipe.unet.enable_xformers_memory_efficient_attention()
    if args.lora_rank:
        alpha = args.lora_rank if args.lora_alpha is None else args.lora_alpha
        add_lora(pipe.unet, args.lora_rank, alpha, tuple(args.lora_target_modules))
    return pipe


@dataclass(frozen=True)
class Samples:
    """What the training loop draws from.

    Attributes:
        dataset: Frames that each step encodes, or cached latents.
        sampler: Draws the batches' `(epoch, index)`.
        normalization: Of the depth.
        size: Height and width of the frames, pixels.
    """

    dataset: FlowFrames | CachedLatents
    sampler: EpochBatchSampler
    normalization: DepthNormalization
    size: tuple[int, int]


def open_frames(args: argparse.Namespace, accelerator: Accelerator) -> tuple[MixedFrames, list[int], list[int]]:
    """Opens the data: all frames, and the indices of those to train on and of those held out for validation.

    Raises:
        ValueError: If the flags ask for what the data does not have.
    """
    frames = MixedFrames.open(args.train_data, streaming=args.streaming)
    if args.normals_loss_weight > 0 and not frames.has_intrinsics:
        raise ValueError(
            "--normals_loss_weight needs the camera of each frame: --train_data has frames with neither fov_x_deg nor "
            "intrinsics. Set fov_x_deg for that source (docs/train.md), or leave the loss out."
        )
    train, held_out = split_by_scene(frames.scenes, args.validation_fraction)
    check_can_validate(held_out, accelerator)
    return frames, train, held_out


def prepare_samples(
    args: argparse.Namespace,
    frames: MixedFrames,
    train: list[int],
    pipe: DepthFMPipeline,
    accelerator: Accelerator,
    with_depth: bool,
) -> Samples:
    """Builds the samples of the training frames and their order; encodes them first if they are to be cached.

    Args:
        args: The script's flags.
        frames: All frames.
        train: Indices of those to train on.
        pipe: Its autoencoder encodes.
        accelerator: Of the run.
        with_depth: Whether samples need their depth beside its latent, for losses on the decoded estimate.
    """
    normalization = DepthNormalization(*args.depth_quantiles, cap=args.depth_cap, sky=args.sky)
    times = TimeDistribution(args.timestep_sampling, args.logit_mean, args.logit_std, args.start_share)
    draws = FlowDraws(times, path_noise=args.sigma_min > 0)
    dataset = FlowFrames(
        frames,
        train,
        AugmentationConfig(flip=args.flip, min_crop=args.min_crop, jitter=args.jitter),
        normalization,
        draws,
        args.resolution,
        pipe.vae_scale_factor,
        args.seed,
        skip_bad_frames=args.bad_frames == "skip",
    )
    size = dataset.size
    sources = frames.source_indices(train, has_weights(args.train_data))
    sampler = EpochBatchSampler(sources, args.train_batch_size, args.seed, accelerator.num_processes)
    if args.cache_latents > 0:
        folder = cache_latents(
            Path(args.latent_cache_dir or Path(args.output_dir) / "latents"),
            pipe,
            dataset,
            variants=args.cache_latents,
            batch_size=args.train_batch_size,
            with_depth=with_depth,
            accelerator=accelerator,
        )
        dataset = CachedLatents(folder, len(dataset), args.cache_latents, normalization, draws, args.seed)
    return Samples(dataset, sampler, normalization, size)


def main(argv: list[str] | None = None) -> None:
    """Runs the training; `argv` defaults to the command line."""
    args = parse_args(argv)
    hub_model_id = args.hub_model_id or Path(args.output_dir).name
    accelerator = build_accelerator(args)
    write_run_config(args, accelerator)
    if args.push_to_hub and accelerator.is_main_process:
        check_hub_access(hub_model_id)

    use_depth = args.normals_loss_weight > 0 or args.gradient_loss_weight > 0
    frames, train, held_out = open_frames(args, accelerator)
    pipe = prepare_pipeline(args, accelerator.device)
    data = prepare_samples(args, frames, train, pipe, accelerator, with_depth=use_depth)

    def compute_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "image_latent" not in batch:
            batch = encode_batch(pipe, batch)
        counts = {f"{COUNT}frames_{name}": batch[name].sum() for name in ("without_depth", "skipped")}
        state = predict_velocity(model, pipe.scheduler, pipe.prompt_embedding(), batch, sigma_min=args.sigma_min)
        loss = data_loss(state, batch["weight"])
        if not use_depth:
            return counts | {"loss": loss}
        terms = decoded_losses(
            state,
            pipe.decode_depth,
            batch,
            normals_weight=args.normals_loss_weight,
            gradient_weight=args.gradient_loss_weight,
            fraction=args.decoded_fraction,
            min_time=args.decoded_min_time,
        )
        return counts | {"loss": loss + terms.pop("weighted"), "data": loss} | terms

    scores: dict[str, float] = {}

    def validate(step: int) -> None:
        if not held_out:
            return
        pipe.unet = accelerator.unwrap_model(trainer.model)
        chosen = held_out[: args.validation_frames]
        resolution = max(args.resolution or [0])
        skip = args.bad_frames == "skip"
        scores.update(score_frames(pipe, frames, chosen, 1, resolution, skip_bad_frames=skip))
        accelerator.log({f"validation/{name}": value for name, value in scores.items()}, step=step)
        logger.info(f"Step {step}: {scores}")
        rule = data.normalization
        grid = depth_grid(pipe, frames, chosen[:8], (1, 2, 4), rule, resolution, skip_bad_frames=skip)
        log_pictures(accelerator, "image | truth | 1, 2, 4 steps", grid, step)

    if args.lora_rank:
        checkpoint_trained_only(accelerator)
    trainer = Trainer(args, accelerator, pipe.unet, data.dataset, data.sampler, compute_loss, validate)
    accelerator.init_trackers("depthfm")
    trainer.run()
    pipe.unet = trainer.final_model().eval().to(memory_format=torch.contiguous_format)
    if accelerator.is_main_process:
        save_result(args, pipe, data.size)
        write_model_card(args, scores)
        if args.push_to_hub:
            push_to_hub(Path(args.output_dir), hub_model_id)
    accelerator.end_training()


def save_result(args: argparse.Namespace, pipe: DepthFMPipeline, size: tuple[int, int]) -> None:
    """Writes the finished pipeline, or the adapters: with their base beside, unless that is a DepthFM already."""
    if args.lora_rank:
        save_adapters(pipe.unet, Path(args.output_dir))
        if is_depthfm(args.pretrained_model_name_or_path):
            return
        pipe.unet.unload_lora()
    pipe.vae.to(memory_format=torch.contiguous_format)
    pipe.register_to_config(default_processing_resolution=max(size))
    save_pipeline(pipe, Path(args.output_dir))


if __name__ == "__main__":
    main()
