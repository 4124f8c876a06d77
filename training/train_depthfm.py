"""Trains a UNet into the flow model of DepthFM: `accelerate launch training/train_depthfm.py --help`.

The result in `--output_dir` is a folder that `DiffusionPipeline.from_pretrained` loads, or LoRA weights for one.
docs/train.md explains the flags.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.checkpoints.model_folder import save_pipeline
from depthfm_diffusers.depth_normalization import NORMALIZATIONS, SKY_RULES, DepthNormalization
from depthfm_diffusers.training.config import (
    add_cache_flags,
    add_hub_flags,
    add_lora_flags,
    add_memory_flags,
    base_parser,
    cache_settings,
    card_facts,
    data_settings,
    fraction,
    hub_model_id,
    lora_settings,
    memory_settings,
    non_negative,
    parse_with_config,
    positive_int,
    sample_settings,
    share,
    trainer_settings,
)
from depthfm_diffusers.training.data.draws import TIMESTEP_SAMPLINGS, FlowDraws, TimeDistribution
from depthfm_diffusers.training.data.flow_data import FlowFrames, cache_latents, encode_batch
from depthfm_diffusers.training.data.partial_depth import CompletionSamples
from depthfm_diffusers.training.data.samples import SplitFrames
from depthfm_diffusers.training.hub import push_to_hub
from depthfm_diffusers.training.loop import COUNT, Trainer
from depthfm_diffusers.training.lora import TARGET_MODULES, checkpoint_trained_only, save_adapters
from depthfm_diffusers.training.model_card import write_model_card
from depthfm_diffusers.training.networks.base_model import (
    CONV_IN_INITS,
    START_DISTRIBUTIONS,
    build_pipeline,
    is_depthfm,
    prepare_completion,
    prepare_pipeline,
)
from depthfm_diffusers.training.networks.decoding_unet import DecodingUNet, prepare_decoder
from depthfm_diffusers.training.networks.encoder_unet import (
    EncoderUNet,
    FeatureNoise,
    add_image_encoder,
    prepare_image_encoder,
    set_feature_statistics,
    take_networks,
)
from depthfm_diffusers.training.objectives.decoded_losses import DecodedLosses, DecodedWeights
from depthfm_diffusers.training.objectives.flow_objective import data_loss, predict_velocity
from depthfm_diffusers.training.run import check_can_validate, start_run
from depthfm_diffusers.training.validation.depth_validation import DepthValidationSettings, validate_depth
from depthfm_diffusers.training.validation.validation import Validation

# What flags without a value of their own are in a stage.
STAGE_DEFAULTS: dict[str, dict[str, float]] = {
    "flow": {
        "start_share": 0.0,
        "gradient_loss_weight": 0.0,
        "l1_loss_weight": 0.0,
        "ssi_loss_weight": 0.0,
        "relative_loss_weight": 0.0,
        "matching_loss_weight": 0.0,
    },
    "one_step": {
        "start_share": 0.75,
        "gradient_loss_weight": 0.5,
        "l1_loss_weight": 0.0,
        "ssi_loss_weight": 1.0,
        "relative_loss_weight": 0.0,
        "matching_loss_weight": 1.0,
    },
}


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the script's flags."""
    parser = base_parser(__doc__.splitlines()[0])
    start = parser.add_argument_group("start from")
    start.add_argument(
        "--pretrained_model_name_or_path", default=None, help="A Stable Diffusion (1.5, 2.1) or a DepthFM folder."
    )
    start.add_argument("--vae", default=None, help="AutoencoderKL folder; with --unet_config, instead of a model.")
    start.add_argument("--unet_config", default=None, help="JSON configuration of a new UNet (8 to 4 channels).")
    start.add_argument(
        "--conv_in_init",
        choices=CONV_IN_INITS,
        default="duplicate",
        help="How the first layer of Stable Diffusion gets 8 input channels.",
    )
    encoder = parser.add_argument_group("image encoder")
    encoder.add_argument(
        "--image_encoder", default=None, help="Folder of convert_image_encoder.py; its features join the UNet's input."
    )
    encoder.add_argument(
        "--train_image_encoder", action=argparse.BooleanOptionalAction, default=False, help="Train its trunk, too."
    )
    encoder.add_argument(
        "--feature_noise", type=non_negative, default=0.3, help="Standard deviation of noise on its features."
    )
    encoder.add_argument(
        "--feature_dropout", type=fraction, default=0.25, help="Share of its features' channels that are set to 0."
    )
    completion = parser.add_argument_group("depth completion")
    completion.add_argument(
        "--completion",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="The UNet also takes depth that is known at some pixels, which is simulated, and predicts metres.",
    )
    completion.add_argument(
        "--completion_dropout",
        type=share,
        default=0.1,
        help="Share of the samples without known depth, so that the model still predicts from images alone.",
    )
    flow = parser.add_argument_group("flow")
    flow.add_argument(
        "--start", choices=START_DISTRIBUTIONS, default="image", help="The flow starts from the image or from noise."
    )
    flow.add_argument(
        "--noise_augmentation_step", type=int, help="Cosine step of the source's noise; default: the model's, or 400."
    )
    flow.add_argument("--sigma_min", type=non_negative, default=0.0, help="Noise that smooths the path.")
    flow.add_argument("--timestep_sampling", choices=TIMESTEP_SAMPLINGS, default="uniform", help="Distribution of t.")
    flow.add_argument("--logit_mean", type=float, default=0.0, help="For logit_normal: mean of logit t.")
    flow.add_argument("--logit_std", type=float, default=1.0, help="For logit_normal: its standard deviation.")
    flow.add_argument("--start_share", type=share, help="Share of samples at exactly t = 0; default: by the stage.")
    stage = parser.add_argument_group("stage")
    stage.add_argument(
        "--stage",
        choices=list(STAGE_DEFAULTS),
        default="flow",
        help="flow: the velocity is trained. one_step: a trained flow is tuned for a single step, on decoded depth.",
    )
    stage.add_argument(
        "--train_decoder",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="In the one-step stage: train the autoencoder's decoder, too.",
    )
    stage.add_argument(
        "--velocity_loss_weight", type=non_negative, default=1.0, help="Weight of the velocity's squared error."
    )
    loss = parser.add_argument_group(
        "losses on the decoded estimate (default: 0, or as docs/train.md says for a stage)"
    )
    loss.add_argument("--normals_loss_weight", type=non_negative, default=0.0, help="Surface normals.")
    loss.add_argument("--gradient_loss_weight", type=non_negative, help="Gradient matching.")
    loss.add_argument("--l1_loss_weight", type=non_negative, help="L1 of the normalised log depth.")
    loss.add_argument("--ssi_loss_weight", type=non_negative, help="The same after the best scale and shift.")
    loss.add_argument("--relative_loss_weight", type=non_negative, help="Relative error of the aligned depth.")
    loss.add_argument("--matching_loss_weight", type=non_negative, help="Matched values in small windows.")
    loss.add_argument(
        "--decoded_fraction",
        type=float,
        default=1.0,
        help="Share of a batch that is decoded for these losses, at most.",
    )
    loss.add_argument(
        "--decoded_min_time", type=fraction, default=0.0, help="Only samples with t of at least this are decoded."
    )
    loss.add_argument(
        "--decoded_checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Compute the decoder's activations again in the backward pass, one sample at a time.",
    )
    depth = parser.add_argument_group("depth and size")
    depth.add_argument(
        "--depth_normalization",
        choices=list(NORMALIZATIONS),
        default="depthfm",
        help="depthfm: quantiles 0.02 and 0.98, clipped, no cap; diff2flow: 0.01 and 0.99, not clipped, 120 m.",
    )
    depth.add_argument(
        "--depth_quantiles",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="Quantiles of a frame's known depth that become -1 and 1; default: by --depth_normalization.",
    )
    depth.add_argument(
        "--depth_cap",
        type=float,
        help="Metres; deeper pixels are treated as sky; default: by --depth_normalization.",
    )
    depth.add_argument(
        "--sky",
        choices=SKY_RULES,
        default="mask",
        help="mask: sky does not count in the loss; far: it is learnt as the farthest.",
    )
    depth.add_argument("--resolution", type=positive_int, nargs=2, metavar=("H", "W"), help="Resize frames to this.")
    add_cache_flags(parser)
    add_lora_flags(parser, "Rank of adapters, which alone are trained; 0: train all weights.", TARGET_MODULES)
    add_memory_flags(parser)
    result = parser.add_argument_group("result")
    result.add_argument(
        "--validation_frames", type=positive_int, default=32, help="Held-out frames that are scored, at most."
    )
    add_hub_flags(result)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line, and the YAML file it may name."""
    parser = build_parser()
    args = parse_with_config(parser, argv)
    defaults = STAGE_DEFAULTS[args.stage]
    if args.completion:  # metres: a loss that aligns scale and shift would not see that they are wrong
        defaults = defaults | {"l1_loss_weight": defaults["ssi_loss_weight"], "ssi_loss_weight": 0.0}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    set_normalization(args)
    from_scratch = args.vae is not None and args.unet_config is not None
    if (args.pretrained_model_name_or_path is None) != from_scratch:
        parser.error("give either --pretrained_model_name_or_path, or both --vae and --unet_config")
    if args.start == "noise" and args.noise_augmentation_step is not None:
        parser.error("--start noise replaces the image by noise: --noise_augmentation_step has no meaning there")
    if not 0.0 < args.decoded_fraction <= 1.0:
        parser.error(f"--decoded_fraction must be in (0, 1], got {args.decoded_fraction}")
    if args.lora_rank and args.pretrained_model_name_or_path is None:
        parser.error("--lora_rank adapts a trained model: give --pretrained_model_name_or_path")
    if args.lora_rank and (args.image_encoder is not None or args.train_image_encoder):
        parser.error(
            "--lora_rank freezes the UNet, which must learn to read a new image encoder, and the encoder: leave out "
            "--image_encoder and --train_image_encoder"
        )
    if args.stage == "one_step":
        if args.pretrained_model_name_or_path is None:
            parser.error("--stage one_step tunes a trained model: give --pretrained_model_name_or_path")
        if args.decoded_min_time > 0:
            parser.error("--stage one_step decodes samples at t = 0 alone: leave out --decoded_min_time")
        if not args.start_share or not decoded_weights(args).positive():
            parser.error("--stage one_step needs samples at t = 0 (--start_share) and a loss on the decoded estimate")
    elif args.train_decoder:
        parser.error(
            "--train_decoder needs --stage one_step: the flow's targets are latents, which no decoder changes"
        )
    if args.velocity_loss_weight == 0 and not decoded_weights(args).positive():
        parser.error("--velocity_loss_weight 0 leaves no loss: give the weight of a loss on the decoded estimate")
    if args.train_image_encoder and args.cache_latents > 0:
        parser.error("--train_image_encoder needs the images, which are not in the cache of --cache_latents")
    return args


def set_normalization(args: argparse.Namespace) -> None:
    """Fills in the flags that `--depth_normalization` has a value for, so that `run_config.json` has them."""
    named = NORMALIZATIONS[args.depth_normalization]
    if args.depth_quantiles is None:
        args.depth_quantiles = [named.low, named.high]
    if args.depth_cap is None:
        args.depth_cap = named.cap


def depth_normalization(args: argparse.Namespace) -> DepthNormalization:
    """Builds the normalisation of depth from the flags."""
    clip = NORMALIZATIONS[args.depth_normalization].clip
    return DepthNormalization(*args.depth_quantiles, cap=args.depth_cap, sky=args.sky, clip=clip)


def decoded_weights(args: argparse.Namespace) -> DecodedWeights:
    """Builds the weights of the losses on the decoded estimate from the flags."""
    return DecodedWeights(
        **{field.name: getattr(args, f"{field.name}_loss_weight") for field in fields(DecodedWeights)}
    )


def decoded_losses(args: argparse.Namespace) -> DecodedLosses | None:
    """Builds the losses on the decoded estimate from the flags; `None`: there are none."""
    weights, at_start = decoded_weights(args), args.stage == "one_step"
    if not weights.positive():
        return None
    return DecodedLosses(weights, args.decoded_fraction, args.decoded_min_time, at_start, args.decoded_checkpointing)


def main(argv: list[str] | None = None) -> None:
    """Runs the training; `argv` defaults to the command line."""
    args = parse_args(argv)
    with start_run(trainer_settings(args), vars(args), hub_model_id(args)) as accelerator:
        train(args, accelerator)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Trains and saves the model."""
    settings, samples, lora = trainer_settings(args), sample_settings(args), lora_settings(args)
    data = SplitFrames.open(data_settings(args))
    check_can_validate(data.held_out, accelerator)
    if args.normals_loss_weight > 0 and not data.frames.has_intrinsics:
        raise ValueError(
            "--normals_loss_weight needs the camera of each frame: --train_data has frames with neither fov_x_deg nor "
            "intrinsics. Set fov_x_deg for that source (docs/train.md), or leave the loss out."
        )
    pipe = build_pipeline(
        args.pretrained_model_name_or_path,
        vae=args.vae,
        unet_config=args.unet_config,
        conv_in_init=args.conv_in_init,
        noise_augmentation_step=args.noise_augmentation_step,
        start=args.start,
    )
    prepare_completion(pipe, args.completion, lora is not None)
    if args.image_encoder is not None:
        pipe = add_image_encoder(pipe, args.image_encoder)
    prepare_pipeline(pipe, memory_settings(args), lora, accelerator.device)
    prepare_image_encoder(pipe, args.train_image_encoder, train_projection=lora is None)
    has_encoder = pipe.image_encoder is not None
    normalization = depth_normalization(args)
    times = TimeDistribution(args.timestep_sampling, args.logit_mean, args.logit_std, args.start_share)
    drawn = {"path_noise": args.sigma_min > 0, "feature_seed": has_encoder, "completion_seed": args.completion}
    draws = FlowDraws(times, pipe.vae.config.latent_channels, **drawn)
    frames = FlowFrames(data.frames, data.train, samples, normalization, draws, pipe.vae_scale_factor)
    if args.image_encoder is not None:
        set_feature_statistics(pipe.image_encoder, frames)
    decoded, cache = decoded_losses(args), cache_settings(args)
    dataset: Dataset = frames
    if cache is not None:
        dataset = cache_latents(pipe, frames, cache, decoded is not None or args.completion, accelerator)
    if args.completion:
        dataset = CompletionSamples(dataset, args.completion_dropout, pipe.vae_scale_factor)

    def compute_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        batch = encode_batch(pipe, batch)
        counts = {f"{COUNT}frames_{name}": batch[name].sum() for name in ("without_depth", "skipped")}
        rows = None if decoded is None else decoded.choose(batch)
        state = predict_velocity(
            model,
            pipe.scheduler,
            pipe.prompt_embedding(),
            batch,
            sigma_min=args.sigma_min,
            decoded_rows=rows if args.train_decoder else None,
        )
        data = data_loss(state, batch["weight"])
        loss = args.velocity_loss_weight * data
        if decoded is None or rows is None:
            return counts | {"loss": loss}
        values = state.decoded
        if values is None and len(rows):
            values = decoded.decode(pipe.decode_depth, state.target_estimate[rows])
        terms = decoded.compute(values, batch, rows)
        return counts | {"loss": loss + terms.pop("weighted"), "data": data} | terms

    validation = DepthValidationSettings(max(samples.resolution or [0]), samples.skip_bad_frames, normalization)
    scored = data.choose(data.held_out, args.validation_frames)
    shown = data.choose(scored, 8)

    def validate(network: torch.nn.Module) -> Validation:
        take_networks(pipe, network)
        return validate_depth(pipe, pipe.unet, data.frames, scored, shown, validation)

    if lora is not None:
        checkpoint_trained_only(accelerator)
    sampler = data.sampler(settings.train_batch_size, settings.seed, accelerator.num_processes)
    noise = FeatureNoise(args.feature_noise, args.feature_dropout)
    network: torch.nn.Module = EncoderUNet(pipe.unet, pipe.image_encoder, noise) if has_encoder else pipe.unet
    if decoded is not None and args.train_decoder:
        prepare_decoder(pipe)
        network = DecodingUNet(network, pipe.vae, pipe.scheduler.config.timestep_scale, decoded.decode)
    trainer = Trainer(
        settings, accelerator, network, dataset, sampler, compute_loss, validate if data.held_out else None
    )
    accelerator.init_trackers("depthfm")
    trainer.run()
    take_networks(pipe, trainer.final_model().eval().to(memory_format=torch.contiguous_format))
    if accelerator.is_main_process:
        base = args.pretrained_model_name_or_path or args.unet_config
        whole = lora is None or args.train_decoder or not is_depthfm(base)
        longest = max(side for size in frames.sizes.values() for side in size)
        if args.stage == "one_step":
            pipe.register_to_config(default_num_inference_steps=1)  # what it was tuned for
        save_result(pipe, settings.output_dir, longest, adapters=lora is not None, whole=whole)
        card = card_facts(args, base), trainer.scores, lora is not None, args.validation_frames, args.completion
        write_model_card(*card)
        if args.push_to_hub:
            push_to_hub(settings.output_dir, hub_model_id(args))
    accelerator.end_training()


def save_result(pipe: DepthFMPipeline, folder: Path, resolution: int, adapters: bool, whole: bool) -> None:
    """Writes what was trained.

    Args:
        pipe: The pipeline.
        folder: Where it is written.
        resolution: The pipeline's default processing resolution, pixels.
        adapters: Whether adapters were trained: they are written to a file of their own.
        whole: Whether the pipeline is written, without the adapters.
    """
    if adapters:
        save_adapters(pipe.unet, folder)
    if whole:
        if adapters:
            pipe.unet.unload_lora()
        pipe.vae.to(memory_format=torch.contiguous_format)
        pipe.register_to_config(default_processing_resolution=resolution)
        save_pipeline(pipe, folder)


if __name__ == "__main__":
    main()
