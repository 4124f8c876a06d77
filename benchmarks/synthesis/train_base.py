"""Trains a small Stable Diffusion (2.1's layout) on images with captions: a base for a depth ControlNet to follow.

    python benchmarks/synthesis/train_base.py --train_data ... --output_dir DIR

The autoencoder is the bundled depthfm-tiny's, and stays as it is; the text encoder is a random CLIP of two layers that
reads bytes, and is not trained either: it tells a few captions apart, which is all that is asked of it. The UNet is
trained on v-prediction, with a last step of pure noise (arXiv 2305.08891). The result in `--output_dir` is a folder
that `StableDiffusionPipeline.from_pretrained` loads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from depthfm_diffusers.training.config import (
    add_cache_flags,
    base_parser,
    cache_settings,
    data_settings,
    fraction,
    parse_with_config,
    sample_settings,
    trainer_settings,
)
from depthfm_diffusers.training.data.controlnet_data import (
    ControlImages,
    PromptTokens,
    cache_control,
    encode_control_batch,
    prompt_embeddings,
)
from depthfm_diffusers.training.data.draws import DiffusionDraws
from depthfm_diffusers.training.data.samples import SplitFrames
from depthfm_diffusers.training.data.sources import open_captioned_images
from depthfm_diffusers.training.loop import Trainer
from depthfm_diffusers.training.objectives.denoising import denoising_loss
from depthfm_diffusers.training.run import start_run

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "steps_offset": 1,  # or diffusers changes it with a warning; not used by this spacing
}
MAX_TOKENS = 24


def build_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = base_parser(__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    model = parser.add_argument_group("model")
    model.add_argument("--unet_config", default=str(here / "unet.json"), help="JSON configuration of the UNet.")
    model.add_argument("--vae", required=True, help="Folder of an AutoencoderKL that decodes images.")
    model.add_argument("--resolution", type=int, nargs=2, metavar=("H", "W"), help="Resize images to cover this.")
    model.add_argument("--proportion_empty_prompts", type=fraction, default=0.1, help="Captions left out.")
    add_cache_flags(parser)
    return parser


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single bytes only, as many of them as `MAX_TOKENS` at once."""
    # CLIP's alphabet: printable bytes stand for themselves, the others are moved up.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "pad_token": "<|endoftext|>"}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
        return CLIPTokenizer.from_pretrained(folder)


def build_base(unet_config: str, vae: str) -> StableDiffusionPipeline:
    """Builds the untrained model around its autoencoder."""
    unet = UNet2DConditionModel.from_config(json.loads(Path(unet_config).read_text()))
    tokenizer = build_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=unet.config.cross_attention_dim,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae),
        text_encoder=text_encoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULE, set_alpha_to_one=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the training; `argv` defaults to the command line."""
    args = parse_with_config(build_parser(), argv)
    with start_run(trainer_settings(args), vars(args)) as accelerator:
        train(args, accelerator)


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Trains and saves the model."""
    settings = trainer_settings(args)
    data = SplitFrames.open(data_settings(args), open_captioned_images)
    pipe = build_base(args.unet_config, args.vae)
    pipe.vae.requires_grad_(False).to(accelerator.device)
    pipe.text_encoder.to(accelerator.device)
    if args.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
    schedule = DDPMScheduler(**SCHEDULE)
    draws = DiffusionDraws(
        schedule.config.num_train_timesteps, pipe.vae.config.latent_channels, args.proportion_empty_prompts
    )
    tokens = PromptTokens(pipe.tokenizer)
    images = ControlImages(data.frames, data.train, sample_settings(args), tokens, draws, pipe.vae_scale_factor)
    cache = cache_settings(args)
    dataset = images if cache is None else cache_control(pipe.vae, None, images, cache, accelerator)
    empty_tokens = tokens("").to(accelerator.device)

    def compute_loss(unet: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "image_latent" not in batch:
            batch = encode_control_batch(pipe.vae, None, batch)
        embedding = prompt_embeddings(pipe.text_encoder, batch, empty_tokens)
        return {"loss": denoising_loss(schedule, batch, lambda x, t: unet(x, t, embedding, return_dict=False)[0])}

    sampler = data.sampler(settings.train_batch_size, settings.seed, accelerator.num_processes)
    trainer = Trainer(settings, accelerator, pipe.unet, dataset, sampler, compute_loss, validate=None)
    accelerator.init_trackers("base")
    trainer.run()
    pipe.unet = trainer.final_model().eval().to(memory_format=torch.contiguous_format)
    if accelerator.is_main_process:
        pipe.save_pretrained(args.output_dir)
    accelerator.end_training()


if __name__ == "__main__":
    main()
