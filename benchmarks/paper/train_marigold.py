"""Trains a UNet as Marigold does (arXiv 2312.02145): denoising the depth latent, given the image's.

    python benchmarks/paper/train_marigold.py --vae DIR --unet_config FILE --train_data ... --output_dir DIR

The peer of `training/train_depthfm.py`: the same flags, frames, augmentation, order of samples, optimizer, steps and
averaging of the weights. Only the loss differs: v-prediction on the schedule of Marigold's current release (v1-1:
scaled linear betas, rescaled so that the last step is pure noise). `--start_share S` trains that share of the samples
at the last step, where sampling starts, as the same flag of the other script does at t = 0.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler, MarigoldDepthPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

import train_depthfm

from depthfm_diffusers import DepthFMPipeline, PromptEmbedding
from depthfm_diffusers.training.config import (
    cache_settings,
    data_settings,
    memory_settings,
    sample_settings,
    trainer_settings,
)
from depthfm_diffusers.training.data.draws import FlowDraws, TimeDistribution
from depthfm_diffusers.training.data.flow_data import FlowFrames, cache_latents, encode_batch
from depthfm_diffusers.training.data.samples import SplitFrames
from depthfm_diffusers.training.loop import Trainer
from depthfm_diffusers.training.networks.base_model import build_pipeline, prepare_pipeline
from depthfm_diffusers.training.objectives.decoded_losses import DecodedWeights
from depthfm_diffusers.training.objectives.flow_objective import FlowState, data_loss
from depthfm_diffusers.training.run import start_run

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
}
SAMPLING = {"timestep_spacing": "trailing", "set_alpha_to_one": False}
# Flags of the flow that have no meaning here.
FLOW_ONLY = (
    *("stage", "velocity_loss_weight", "start", "noise_augmentation_step", "sigma_min", "image_encoder"),
    *(f"{field.name}_loss_weight" for field in fields(DecodedWeights)),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of `train_depthfm`; those that only a flow, a base model or adapters have are refused."""
    args = train_depthfm.parse_args(argv)
    parser = train_depthfm.build_parser()
    defaults = vars(parser.parse_args(["--train_data", "", "--output_dir", ""])) | train_depthfm.STAGE_DEFAULTS["flow"]
    for name in (*FLOW_ONLY, "pretrained_model_name_or_path", "lora_rank", "push_to_hub"):
        if getattr(args, name) != defaults[name]:
            raise SystemExit(f"train_marigold.py: --{name} has no meaning for this script")
    return args


def main(argv: list[str] | None = None) -> None:
    """Trains and saves a `MarigoldDepthPipeline`; `argv` defaults to the command line."""
    args = parse_args(argv)
    with start_run(trainer_settings(args), vars(args)) as accelerator:
        train(args, accelerator)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Trains and saves the pipeline."""
    settings = trainer_settings(args)
    data = SplitFrames.open(data_settings(args))
    pipe = build_pipeline(vae=args.vae, unet_config=args.unet_config)
    prepare_pipeline(pipe, memory_settings(args), None, accelerator.device)
    normalization = train_depthfm.depth_normalization(args)
    times = TimeDistribution(args.timestep_sampling, args.logit_mean, args.logit_std, args.start_share)
    draws = FlowDraws(times, pipe.vae.config.latent_channels)
    frames = FlowFrames(data.frames, data.train, sample_settings(args), normalization, draws, pipe.vae_scale_factor)
    cache = cache_settings(args)
    dataset = frames if cache is None else cache_latents(pipe, frames, cache, False, accelerator)
    schedule = DDPMScheduler(**SCHEDULE)
    steps = schedule.config.num_train_timesteps

    def compute_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "image_latent" not in batch:
            batch = encode_batch(pipe, batch)
        depth, noise, time = batch["depth_latent"], batch["noise"], batch["time"]
        timesteps = steps - 1 - (time * steps).long()  # t = 0, where sampling starts, is the last step: pure noise
        noisy = schedule.add_noise(depth, noise, timesteps)
        embedding = pipe.prompt_embedding().expand(len(time), -1, -1)
        prediction = model(torch.cat([batch["image_latent"], noisy], dim=1), timesteps, embedding, return_dict=False)[
            0
        ]
        state = FlowState(time, noisy, prediction.float(), schedule.get_velocity(depth, noise, timesteps))
        return {"loss": data_loss(state, batch["weight"])}

    sampler = data.sampler(settings.train_batch_size, settings.seed, accelerator.num_processes)
    trainer = Trainer(settings, accelerator, pipe.unet, dataset, sampler, compute_loss, validate=None)
    accelerator.init_trackers("marigold")
    trainer.run()
    pipe.unet = trainer.final_model().eval().to(memory_format=torch.contiguous_format)
    pipe.vae.to(memory_format=torch.contiguous_format)
    if accelerator.is_main_process:
        save(pipe, settings.output_dir)
    accelerator.end_training()


def save(pipe: DepthFMPipeline, folder: Path) -> None:
    """Writes the networks as Marigold's pipeline, and the constant embedding that it takes from a text encoder."""
    pipe.prompt_embedding.save_pretrained(folder / "prompt_embedding")
    marigold = MarigoldDepthPipeline(
        unet=pipe.unet,
        vae=pipe.vae,
        scheduler=DDIMScheduler(**SCHEDULE, **SAMPLING),
        text_encoder=None,
        tokenizer=None,
        prediction_type="depth",
    )
    marigold.save_pretrained(folder)


def load(folder: Path) -> MarigoldDepthPipeline:
    """Reads what `save` wrote, ready to run."""
    pipe = MarigoldDepthPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    pipe.empty_text_embedding = PromptEmbedding.from_pretrained(folder / "prompt_embedding")()
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    main()
