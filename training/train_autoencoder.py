"""Trains the small image/depth autoencoder of `depthfm-tiny`: `accelerate launch training/train_autoencoder.py`.

An `AutoencoderKL`, 8x down, 4 channels, on images and depth maps alike. Whoever has Stable Diffusion's autoencoder
does not need this.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.training.config import (
    base_parser,
    parse_with_config,
    positive_int,
)
from depthfm_diffusers.training.data.depth_transforms import AugmentationConfig
from depthfm_diffusers.training.data.sampling import (
    EpochBatchSampler,
    SourceIndices,
)
from depthfm_diffusers.training.data.sources import MixedFrames
from depthfm_diffusers.training.loop import (
    Trainer,
    build_accelerator,
    log_pictures,
    write_run_config,
)
from depthfm_diffusers.training.objectives.autoencoder_objective import (
    DOWNSAMPLING,
    LATENT_CHANNELS,
    AutoencoderViews,
    VariationalPass,
    autoencoder_loss,
    image_and_depth,
)
from depthfm_diffusers.training.validation.depth_validation import picture_grid


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--pretrained_model_name_or_path", default=None, help="AutoencoderKL to start from.")
    group = parser.add_argument_group("autoencoder")
    group.add_argument("--block_out_channels", type=positive_int, nargs=4, default=[16, 32, 64, 128], help="Widths.")
    group.add_argument("--layers_per_block", type=positive_int, default=1, help="Residual blocks per level.")
    group.add_argument("--norm_num_groups", type=positive_int, default=8, help="Groups of the normalisation.")
    group.add_argument("--crop_size", type=positive_int, default=128, help="Side of the training crops, pixels.")
    group.add_argument("--kl_weight", type=float, default=5e-4, help="Weight of the mean KL divergence.")
    group.add_argument("--gradient_weight", type=float, default=0.5, help="Weight of the L1 of first differences.")
    args = parse_with_config(parser, argv)
    if args.crop_size % DOWNSAMPLING:
        parser.error(f"--crop_size must be a multiple of {DOWNSAMPLING}, got {args.crop_size}")
    return args


def build_autoencoder(args: argparse.Namespace) -> AutoencoderKL:
    """The autoencoder to train: loaded, or new with the widths asked for."""
    if args.pretrained_model_name_or_path is not None:
        return AutoencoderKL.from_pretrained(args.pretrained_model_name_or_path)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(args.block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(args.block_out_channels),
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=args.norm_num_groups,
        # Convolutions only: what is learnt on crops holds at any size.
        mid_block_add_attention=False,
    )


@torch.no_grad()
def fit_scaling_factor(vae: AutoencoderKL, frames: MixedFrames, indices: list[int]) -> None:
    """Sets `scaling_factor` to 1 / (standard deviation of the latents of images and depth maps together)."""
    latents = []
    for index in indices:
        pixels = image_and_depth(frames[index]).to(vae.device)
        latents.append(vae.encode(pixels).latent_dist.mode().flatten())
    vae.register_to_config(scaling_factor=1.0 / torch.cat(latents).std().item())


def main(argv: list[str] | None = None) -> None:
    """Runs the training; `argv` defaults to the command line."""
    args = parse_args(argv)
    accelerator = build_accelerator(args)
    write_run_config(args, accelerator)

    frames = MixedFrames.open(args.train_data, streaming=args.streaming)
    train, held_out = split_by_scene(frames.scenes, args.validation_fraction)
    augmentation = AugmentationConfig(flip=args.flip, min_crop=args.min_crop, jitter=args.jitter)
    dataset = AutoencoderViews(frames, train, augmentation, args.crop_size, args.seed)

    model = VariationalPass(build_autoencoder(args))
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)

    def compute_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return autoencoder_loss(model, batch, args.kl_weight, args.gradient_weight)

    def validate(step: int) -> None:
        vae = accelerator.unwrap_model(trainer.model).vae
        rows, errors = [], []
        for index in held_out[:16]:
            pixels = image_and_depth(frames[index]).to(accelerator.device)
            decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
            errors.append((decoded - pixels).abs().mean(dim=(1, 2, 3)))
            rows.append([*pixels, *decoded])
        if not rows:
            return
        image_l1, depth_l1 = torch.stack(errors).mean(0).tolist()
        accelerator.log({"validation/image_l1": image_l1, "validation/depth_l1": depth_l1}, step=step)
        log_pictures(accelerator, "validation", picture_grid(rows[:8]), step)

    sampler = EpochBatchSampler(
        [SourceIndices(np.arange(len(train)))], args.train_batch_size, args.seed, accelerator.num_processes
    )
    trainer = Trainer(args, accelerator, model, dataset, sampler, compute_loss, validate)
    accelerator.init_trackers("autoencoder")
    trainer.run()

    vae = trainer.final_model().vae.eval()
    if accelerator.is_main_process:
        fit_scaling_factor(vae, frames, train[:256])
        vae.register_to_config(_name_or_path="")  # or diffusers saves the path it was loaded from
        vae.to(memory_format=torch.contiguous_format).save_pretrained(Path(args.output_dir))
    accelerator.end_training()


if __name__ == "__main__":
    main()
