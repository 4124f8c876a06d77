"""Trains a depth ControlNet on DepthFM's depth: `accelerate launch training/train_depth_controlnet.py --help`.

The result in `--output_dir` is a ControlNet that `ControlNetModel.from_pretrained` loads. docs/synthesis.md explains
the flags.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from depthfm_diffusers import default_model_path
from depthfm_diffusers.control_image import CONTROL_MODES, DEFAULT_CONTROL_PERCENTILES
from depthfm_diffusers.training.config import (
    add_cache_flags,
    add_hub_flags,
    add_lora_flags,
    add_memory_flags,
    base_parser,
    cache_settings,
    card_facts,
    data_settings,
    hub_model_id,
    lora_settings,
    memory_settings,
    parse_with_config,
    positive_int,
    sample_settings,
    share,
    trainer_settings,
)
from depthfm_diffusers.training.data.controlnet_data import (
    ControlImages,
    DepthControl,
    PromptTokens,
    cache_control,
    encode_control_batch,
    prompt_embeddings,
)
from depthfm_diffusers.training.data.draws import DiffusionDraws
from depthfm_diffusers.training.data.samples import SplitFrames
from depthfm_diffusers.training.data.sources import open_captioned_images
from depthfm_diffusers.training.hub import push_to_hub
from depthfm_diffusers.training.loop import COUNT, Trainer
from depthfm_diffusers.training.lora import TARGET_MODULES, checkpoint_trained_only
from depthfm_diffusers.training.model_card import ControlNetFacts, write_controlnet_card
from depthfm_diffusers.training.networks.base_model import load_schedule
from depthfm_diffusers.training.networks.controlnet_model import (
    DEFAULT_CONDITIONING_CHANNELS,
    ControlNetSettings,
    build_controlnet,
    freeze_base,
    load_base,
    predict_with_control,
    save_controlnet,
)
from depthfm_diffusers.training.objectives.denoising import denoising_loss
from depthfm_diffusers.training.run import check_can_validate, start_run
from depthfm_diffusers.training.validation.controlnet_validation import ControlValidation, ControlValidationSettings

DATA_HELP = (
    "Images, with or without captions: WebDataset shards (.tar), Parquet files, folders of them, folders of images; "
    "or JSON objects with a path and settings (docs/synthesis.md)."
)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the script's flags."""
    parser = base_parser(__doc__.splitlines()[0], data_help=DATA_HELP)
    # Published depth ControlNets were trained without averaged weights, with a low and constant learning rate.
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
    control.add_argument(
        "--depth_model", default=str(default_model_path()), help="The DepthFM that estimates the depth."
    )
    control.add_argument(
        "--depth_steps", type=positive_int, default=None, help="The estimator's steps; default: the model's."
    )
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
    text.add_argument(
        "--proportion_empty_prompts", type=share, default=0.5, help="Share of the captions that are left out."
    )
    size = parser.add_argument_group("size")
    size.add_argument(
        "--resolution", type=positive_int, nargs=2, metavar=("H", "W"), help="Resize images to cover this."
    )
    add_cache_flags(parser)
    add_lora_flags(
        parser, "Rank of adapters for the layers that are trained already; 0: train all weights.", TARGET_MODULES
    )
    add_memory_flags(parser)
    result = parser.add_argument_group("result")
    result.add_argument(
        "--validation_images", type=positive_int, default=8, help="Held-out images whose depth is followed, at most."
    )
    result.add_argument("--validation_inference_steps", type=positive_int, default=20, help="Inference steps of each.")
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


def controlnet_settings(args: argparse.Namespace) -> ControlNetSettings:
    """Builds the settings of the ControlNet from the flags."""
    channels = tuple(args.conditioning_embedding_out_channels or DEFAULT_CONDITIONING_CHANNELS)
    return ControlNetSettings(args.controlnet, channels, lora_settings(args), memory_settings(args))


def main(argv: list[str] | None = None) -> None:
    """Runs the training; `argv` defaults to the command line."""
    args = parse_args(argv)
    with start_run(trainer_settings(args), vars(args), hub_model_id(args)) as accelerator:
        train(args, accelerator)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Trains and saves the ControlNet."""
    settings, samples, trained = trainer_settings(args), sample_settings(args), controlnet_settings(args)
    data = SplitFrames.open(data_settings(args), open_captioned_images)
    check_can_validate(data.held_out, accelerator)
    base = load_base(args.pretrained_model_name_or_path)
    # Before the UNet is rounded: a new ControlNet copies its weights.
    controlnet = build_controlnet(trained, base.unet, base.vae_scale_factor)
    freeze_base(base, trained.memory, accelerator)
    percentiles = (args.control_percentiles[0], args.control_percentiles[1])
    control = DepthControl.load(args.depth_model, args.depth_steps, args.control_mode, percentiles, accelerator.device)
    schedule = load_schedule(args.pretrained_model_name_or_path, DDPMScheduler)
    draws = DiffusionDraws(
        schedule.config.num_train_timesteps, base.vae.config.latent_channels, args.proportion_empty_prompts
    )
    tokens = PromptTokens(base.tokenizer)
    images = ControlImages(
        data.frames, data.train, samples, tokens, draws, base.vae_scale_factor, depth_noise=control.noise
    )
    cache = cache_settings(args)
    dataset = images if cache is None else cache_control(base.vae, control, images, cache, accelerator)
    empty_tokens = tokens("").to(accelerator.device)

    def compute_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "image_latent" not in batch:
            batch = encode_control_batch(base.vae, control, batch)
        embedding = prompt_embeddings(base.text_encoder, batch, empty_tokens)

        def predict(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return predict_with_control(model, base.unet, noisy, timestep, embedding, batch["control"])

        loss = denoising_loss(schedule, batch, predict)
        return {"loss": loss, f"{COUNT}images_skipped": batch["skipped"].sum()}

    validation = ControlValidationSettings(
        args.validation_inference_steps, args.validation_guidance_scale, samples.skip_bad_frames
    )
    chosen = data.choose(data.held_out, args.validation_images)
    size = next(iter(images.sizes.values()))
    validate = ControlValidation(validation, base, control, data.frames, chosen, size)

    if trained.lora is not None:
        checkpoint_trained_only(accelerator)
    sampler = data.sampler(settings.train_batch_size, settings.seed, accelerator.num_processes)
    trainer = Trainer(
        settings, accelerator, controlnet, dataset, sampler, compute_loss, validate if data.held_out else None
    )
    accelerator.init_trackers("depth_controlnet")
    trainer.run()
    controlnet = trainer.final_model().eval().to(memory_format=torch.contiguous_format)
    if accelerator.is_main_process:
        save_controlnet(trained, controlnet, settings.output_dir)
        facts = ControlNetFacts(
            args.depth_model,
            args.control_mode,
            percentiles,
            args.validation_images,
            args.validation_inference_steps,
            args.validation_guidance_scale,
        )
        write_controlnet_card(card_facts(args, args.pretrained_model_name_or_path), facts, trainer.scores)
        if args.push_to_hub:
            push_to_hub(settings.output_dir, hub_model_id(args))
    accelerator.end_training()


if __name__ == "__main__":
    main()
