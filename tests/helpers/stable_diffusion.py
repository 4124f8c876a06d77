"""Tiny random Stable Diffusions of both layouts, saved as diffusers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from helpers.components import build_unet, build_vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LAYOUTS = {
    "1.5": {"unet": {"attention_head_dim": 8, "use_linear_projection": False, "cross_attention_dim": 24}, "pad": None},
    "2.1": {
        "unet": {"attention_head_dim": [2, 4], "use_linear_projection": True, "cross_attention_dim": 32},
        "pad": "!",
    },
}


def write_tokenizer(folder: Path, pad: str | None) -> Path:
    """A CLIP tokenizer of a few words, in the files that Stable Diffusion's folders have."""
    folder.mkdir()
    vocabulary = ["!", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad or "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def build_stable_diffusion(folder: Path, layout: str, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Saves a tiny random Stable Diffusion to `folder`, and returns it."""
    settings = LAYOUTS[layout]
    width = settings["unet"]["cross_attention_dim"]
    tokenizer = CLIPTokenizer.from_pretrained(
        write_tokenizer(folder.with_name(f"{folder.name}-words"), settings["pad"])
    )
    torch.manual_seed(1)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=4,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=2,
            eos_token_id=3,
        )
    ).eval()
    pipe = StableDiffusionPipeline(
        vae=build_vae(scaling_factor=0.3),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=build_unet(in_channels=4, **settings["unet"]),
        scheduler=DDIMScheduler(prediction_type=prediction_type, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return pipe
