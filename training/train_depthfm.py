"""Trains a UNet into the flow model of DepthFM: `accelerate launch training/train_depthfm.py --help`.

The result in `--output_dir` is a folder that `DiffusionPipeline.from_pretrained` loads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate.logging import get_logger
from config import base_parser, positive_int
from depth_transforms import AugmentationConfig
from diffusers import AutoencoderKL, UNet2DConditionModel
from flow_data import CachedLatents, FlowFrames, cache_latents, encode_batch
from frames import SceneFrames, split_by_scene
from loop import Trainer, build_accelerator, write_run_config
from objective import TIMESTEP_SAMPLINGS, TimeDistribution, data_loss, normals_loss, predict_velocity
from validation import depth_grid, score_frames

from depthfm_diffusers import DepthFMPipeline, FlowMatchingImageToDepthScheduler, PromptEmbedding
from depthfm_diffusers.model_folder import save_pipeline

logger = get_logger(__name__)

AUTOCAST_DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = base_parser(__doc__.splitlines()[0])
    start = parser.add_argument_group("start from")
    start.add_argument("--pretrained_model_name_or_path", default=None, help="A DepthFM folder to go on from.")
    start.add_argument("--vae", default=None, help="AutoencoderKL folder; with --unet_config, instead of a model.")
    start.add_argument("--unet_config", default=None, help="JSON configuration of a new UNet (8 to 4 channels).")
    flow = parser.add_argument_group("flow")
    flow.add_argument(
        "--noise_augmentation_step", type=int, help="Cosine step of the source's noise; default: the model's, or 400."
    )
    flow.add_argument("--timestep_sampling", choices=TIMESTEP_SAMPLINGS, default="uniform", help="Distribution of t.")
    flow.add_argument("--logit_mean", type=float, default=0.0, help="For logit_normal: mean of logit t.")
    flow.add_argument("--logit_std", type=float, default=1.0, help="For logit_normal: its standard deviation.")
    flow.add_argument("--start_share", type=float, default=0.0, help="Share of samples at exactly t = 0.")
    flow.add_argument("--normals_loss_weight", type=float, default=0.0, help="Weight of the surface-normals loss.")
    flow.add_argument("--resolution", type=positive_int, nargs=2, metavar=("H", "W"), help="Resize frames to this.")
    flow.add_argument("--cache_latents", type=int, default=0, help="Augmented variants encoded once; 0: every step.")
    flow.add_argument("--latent_cache_dir", default=None, help="Where those are kept; default: in output_dir.")
    flow.add_argument("--validation_frames", type=positive_int, default=32, help="Frames that are scored.")
    args = parser.parse_args(argv)
    from_scratch = args.vae is not None and args.unet_config is not None
    if (args.pretrained_model_name_or_path is None) != from_scratch:
        parser.error("give either --pretrained_model_name_or_path, or both --vae and --unet_config")
    if args.normals_loss_weight > 0 and args.cache_latents > 0:
        parser.error("--normals_loss_weight needs the depth of each sample: it cannot be used with --cache_latents")
    return args


def build_pipeline(args: argparse.Namespace) -> DepthFMPipeline:
    """The pipeline to train: loaded, or a new UNet around an autoencoder."""
    given = args.noise_augmentation_step is not None
    noise = {"noise_augmentation_step": args.noise_augmentation_step} if given else {}
    if args.pretrained_model_name_or_path is not None:
        pipe = DepthFMPipeline.from_pretrained(args.pretrained_model_name_or_path, dtype=torch.float32)
        pipe.scheduler = FlowMatchingImageToDepthScheduler.from_config(pipe.scheduler.config, **noise)
        return pipe
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel._dict_from_json_file(args.unet_config))
    if (unet.config.in_channels, unet.config.out_channels) != (8, 4):
        raise ValueError(
            f"--unet_config: DepthFM's UNet has 8 input and 4 output channels, {args.unet_config} has "
            f"{unet.config.in_channels} and {unet.config.out_channels}."
        )
    return DepthFMPipeline(
        unet=unet,
        vae=AutoencoderKL.from_pretrained(args.vae),
        scheduler=FlowMatchingImageToDepthScheduler(**noise),
        # Never trained: the network has no text to listen to, one zero token keeps the layout.
        prompt_embedding=PromptEmbedding(num_tokens=1, dim=unet.config.cross_attention_dim),
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the training; `argv` defaults to the command line."""
    args = parse_args(argv)
    accelerator = build_accelerator(args)
    write_run_config(args, accelerator)

    pipe = build_pipeline(args)
    pipe.set_progress_bar_config(disable=True)
    unet, vae, scheduler = pipe.unet, pipe.vae, pipe.scheduler
    vae.requires_grad_(False).to(accelerator.device)
    pipe.prompt_embedding.to(accelerator.device)
    if args.channels_last:
        unet, vae = unet.to(memory_format=torch.channels_last), vae.to(memory_format=torch.channels_last)

    frames = SceneFrames(args.train_data)
    train, held_out = split_by_scene(frames.scenes, args.validation_fraction)
    times = TimeDistribution(args.timestep_sampling, args.logit_mean, args.logit_std, args.start_share)
    augmentation = AugmentationConfig(flip=True, min_crop=args.min_crop, jitter=args.jitter)
    dataset = FlowFrames(frames, train, augmentation, times, args.resolution, pipe.vae_scale_factor, args.seed)
    size = dataset.size
    if args.cache_latents > 0:
        with accelerator.main_process_first():
            path = cache_latents(
                Path(args.latent_cache_dir or Path(args.output_dir) / "latents"),
                pipe,
                dataset,
                args.train_data,
                variants=args.cache_latents,
                batch_size=args.train_batch_size,
                device=accelerator.device,
                autocast_dtype=AUTOCAST_DTYPES[accelerator.mixed_precision],
            )
        dataset = CachedLatents(path, times, args.seed)

    def compute_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        terms = {}
        if "image_latent" not in batch:
            batch = encode_batch(pipe, batch)
            terms["frames_without_range"] = 1 - batch["has_range"].mean()
        state = predict_velocity(model, scheduler, pipe.prompt_embedding(), batch)
        data = data_loss(state, batch["weight"])
        if args.normals_loss_weight == 0:
            return terms | {"loss": data}
        geometry = (batch[name] for name in ("depth", "valid", "bounds", "intrinsics"))
        normals = normals_loss(state, pipe.decode_depth, *geometry)
        return terms | {"loss": data + args.normals_loss_weight * normals, "data": data, "normals": normals}

    def validate(step: int) -> None:
        if not held_out:
            return
        pipe.unet = accelerator.unwrap_model(trainer.model)
        chosen = held_out[: args.validation_frames]
        resolution = max(args.resolution or [0])
        scores = score_frames(pipe, frames, chosen, steps=1, processing_resolution=resolution)
        scores = {f"validation/{name}": value for name, value in scores.items()}
        accelerator.log(scores, step=step)
        logger.info(f"Step {step}: {scores}")
        grid = depth_grid(pipe, frames, chosen[:8], steps=(1, 2, 4), processing_resolution=resolution)
        for tracker in accelerator.trackers:
            tracker.log_images({"image | truth | 1, 2, 4 steps": grid[None]}, step=step, dataformats="NHWC")

    trainer = Trainer(args, accelerator, unet, dataset, compute_loss, validate)
    accelerator.init_trackers("depthfm")
    trainer.run()

    model = trainer.final_model().eval()
    if accelerator.is_main_process:
        pipe.unet = model.to(memory_format=torch.contiguous_format)
        vae.to(memory_format=torch.contiguous_format)
        pipe.register_to_config(default_processing_resolution=max(size))
        save_pipeline(pipe, Path(args.output_dir))
    accelerator.end_training()


if __name__ == "__main__":
    main()
