"""Trains the small image/depth autoencoder of `depthfm-tiny`: `accelerate launch training/train_autoencoder.py`.

An `AutoencoderKL`, 8x down, 4 channels, trained on images and depth maps together. With Stable Diffusion's autoencoder
at hand it is not needed.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from depthfm_diffusers.training.config import (
    base_parser,
    data_settings,
    non_negative,
    parse_with_config,
    positive_int,
    sample_settings,
    share,
    trainer_settings,
)
from depthfm_diffusers.training.data.autoencoder_data import AutoencoderViews
from depthfm_diffusers.training.data.samples import SplitFrames
from depthfm_diffusers.training.data.sampling import EpochBatchSampler, SourceIndices
from depthfm_diffusers.training.loop import Trainer
from depthfm_diffusers.training.networks.autoencoder import (
    WIDTHS,
    VariationalPass,
    build_autoencoder,
    downsampling,
    fit_scaling_factor,
)
from depthfm_diffusers.training.objectives.autoencoder_objective import AutoencoderWeights, autoencoder_loss
from depthfm_diffusers.training.run import check_can_validate, start_run
from depthfm_diffusers.training.validation.autoencoder_validation import validate_autoencoder
from depthfm_diffusers.training.validation.validation import Validation


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line, and the YAML file it may name."""
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--pretrained_model_name_or_path", default=None, help="AutoencoderKL to start from.")
    group = parser.add_argument_group("autoencoder")
    group.add_argument(
        "--block_out_channels",
        type=positive_int,
        nargs="+",
        default=None,
        help="Widths, from full resolution down; default: 16 32 64 128, or those of the model to start from. With "
        "other widths than its own, the leading channels of its weights are taken.",
    )
    group.add_argument("--layers_per_block", type=positive_int, default=1, help="Residual blocks per level.")
    group.add_argument("--norm_num_groups", type=positive_int, default=8, help="Groups of the normalisation.")
    group.add_argument("--crop_size", type=positive_int, default=128, help="Side of the training crops, pixels.")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--kl_weight", type=non_negative, default=5e-4, help="Weight of the mean KL divergence.")
    loss.add_argument("--gradient_weight", type=non_negative, default=0.5, help="Weight of the L1 of differences.")
    loss.add_argument("--image_weight", type=non_negative, default=1.0, help="Weight of images; of depth maps: 1.")
    loss.add_argument("--image_share", type=share, default=1.0, help="Share of a batch's images that are used.")
    loss.add_argument(
        "--matching_weight", type=non_negative, default=0.0, help="Weight of the loss of matched windows, on depth."
    )
    args = parse_with_config(parser, argv)
    if args.block_out_channels is None and args.pretrained_model_name_or_path is None:
        args.block_out_channels = list(WIDTHS)  # recorded, so that runs of earlier versions can be resumed
    return args


def main(argv: list[str] | None = None) -> None:
    """Runs the training; `argv` defaults to the command line."""
    args = parse_args(argv)
    with start_run(trainer_settings(args), vars(args)) as accelerator:
        train(args, accelerator)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Trains and saves the autoencoder."""
    settings = trainer_settings(args)
    weights = AutoencoderWeights(
        args.kl_weight, args.gradient_weight, args.image_weight, args.matching_weight, args.image_share
    )
    data = SplitFrames.open(data_settings(args))
    check_can_validate(data.held_out, accelerator)
    vae = build_autoencoder(
        args.pretrained_model_name_or_path, args.block_out_channels, args.layers_per_block, args.norm_num_groups
    )
    channels, factor = vae.config.latent_channels, downsampling(vae)
    dataset = AutoencoderViews(data.frames, data.train, sample_settings(args), args.crop_size, channels, factor)
    model = VariationalPass(vae)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)

    def compute_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return autoencoder_loss(model, batch, weights)

    scored = data.choose(data.held_out, 16)
    shown = data.choose(scored, 8)

    def validate(model: VariationalPass) -> Validation:
        return validate_autoencoder(model.vae, data.frames, scored, shown)

    # Every frame once an epoch, whatever its source.
    order = [SourceIndices(np.arange(len(data.train)))]
    sampler = EpochBatchSampler(order, settings.train_batch_size, settings.seed, accelerator.num_processes)
    trainer = Trainer(
        settings, accelerator, model, dataset, sampler, compute_loss, validate if data.held_out else None
    )
    accelerator.init_trackers("autoencoder")
    trainer.run()

    vae: AutoencoderKL = trainer.final_model().vae.eval()
    if accelerator.is_main_process:
        fit_scaling_factor(vae, (data.frames[index] for index in data.train[:256]))
        vae.register_to_config(_name_or_path="")  # or diffusers saves the path it was loaded from
        vae.to(memory_format=torch.contiguous_format).save_pretrained(settings.output_dir)
    accelerator.end_training()


if __name__ == "__main__":
    main()
