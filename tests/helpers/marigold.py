"""A tiny random `MarigoldDepthPipeline`, saved as diffusers saves it."""

from __future__ import annotations

from pathlib import Path

from diffusers import DDIMScheduler, MarigoldDepthPipeline
from helpers.components import build_unet
from helpers.stable_diffusion import LAYOUTS, build_stable_diffusion


def build_marigold(folder: Path, prediction_type: str = "depth") -> MarigoldDepthPipeline:
    """Saves the pipeline to `folder`, quiet, with the text encoder and autoencoder of a tiny Stable Diffusion 2.1."""
    base = build_stable_diffusion(folder.with_name(f"{folder.name}-base"), "2.1")
    pipe = MarigoldDepthPipeline(
        unet=build_unet(**LAYOUTS["2.1"]["unet"]),
        vae=base.vae,
        scheduler=DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False),
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        prediction_type=prediction_type,
        default_denoising_steps=2,
        default_processing_resolution=64,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe
